"""The device that computes, and the type of the base weights on it."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def base_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Resolve `model.dtype`: auto is bfloat16 on a GPU that computes in it, else float32."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    # Nothing is trained in float16; a merged model may be stored in it.
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}[wanted]


def computes_bfloat16_slowly(device: torch.device) -> bool:
    """Whether float32 is much the faster one: x86 processors with AVX2 and no AVX-512 lack fast bfloat16 products."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
