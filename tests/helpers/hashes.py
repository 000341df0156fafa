"""One hash of what a run is worth: tensors, ranks and scalings of its plan and its adapter."""

import hashlib
import json
import sys
from pathlib import Path

from safetensors import safe_open

_CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def run_hash(run: Path) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, and every module's rank and scaling."""
    digest = hashlib.sha256()
    plan = json.loads(_add_tensors(digest, run / "plan.safetensors")["gora"])
    for module in plan["modules"]:
        digest.update(f"{module['name']} {module['rank']} {module['scaling']!r} ".encode())
    _add_tensors(digest, run / "adapter" / "adapter_model.safetensors")
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    digest.update(json.dumps({key: config[key] for key in _CONFIG}, sort_keys=True).encode())
    return digest.hexdigest()


def _add_tensors(digest, path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            digest.update(tensor.tobytes())
        return file.metadata()


if __name__ == "__main__":
    print(run_hash(Path(sys.argv[1])))
