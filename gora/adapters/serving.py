"""The commands that serve what gora has written."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from gora.adapters.forms import read_lora, served_rank
from gora.adapters.reading import misreadings
from gora.adapters.runtimes import find_runtime

_READS_PATTERNS = "vllm@0.32"


def adapter_commands(adapter: Path, *, place: str | None = None, base: str | None = None) -> list[str]:
    """How to serve an adapter beside its base: with vLLM as it is, with llama.cpp after an export.

    Empty where it is more than a plain LoRA adapter: such a one is merged first.

    Args:
        adapter: its folder.
        place: what the commands call it; None is the folder.
        base: what they call its base; None is what the adapter does.
    """
    lora, vllm = read_lora(adapter), find_runtime(_READS_PATTERNS)
    if misreadings(lora, vllm):
        return []
    place, base = quote(place or str(adapter)), quote(base or lora.config.base_model_name_or_path)
    served = vllm.command.format(base=base, adapter=place, rank=served_rank(lora))
    return [f"{served}  # vLLM 0.32 or later", f"gora export {place} --for llama.cpp --output exported"]


def model_commands(folder: Path) -> list[str]:
    """How to serve a merged model, with vLLM and with llama.cpp."""
    place, file = quote(str(folder)), quote(f"{folder.name}.gguf")
    return [
        f"vllm serve {place}",
        f"python convert_hf_to_gguf.py {place} --outfile {file} && llama-server -m {file}",
    ]
