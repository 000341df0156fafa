"""`model.attention`: the kernel that computes attention in a model."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from gora.errors import InputError
from gora.models.source import Source


def attention_kernel(wanted: str, dtype: torch.dtype, device: torch.device, has_flash: bool = True) -> str | None:
    """Resolve `model.attention`; None leaves SDPA or, for a model without it, the plain kernel to transformers.

    Raises:
        InputError: FlashAttention-2 is asked for where it cannot run, with every reason.
    """
    reasons = []
    if not is_flash_attn_2_available():
        reasons.append("the package flash-attn is not installed, or finds no GPU")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        reasons.append(f"the device ({device.type}) is not an NVIDIA GPU of compute capability 8.0 or newer")
    if dtype != torch.bfloat16:
        reasons.append(f"it computes in bfloat16, and the base weights are {dtype}".replace("torch.", ""))
    if wanted == "flash_attention_2" and reasons:
        raise InputError("model.attention: FlashAttention-2 cannot run here. `auto` takes the best that can.", reasons)
    if wanted == "auto":
        return None if reasons or not has_flash else "flash_attention_2"
    return wanted


def has_flash(source: Source) -> bool:
    """Whether the model's class knows FlashAttention-2; one with code of its own is not asked for it by itself."""
    return bool(getattr(_class_of(source), "_supports_flash_attn", False))


def plain_attention(source: Source) -> str:
    """The kernel for a model whose configuration names FlashAttention where that does not run."""
    return "sdpa" if getattr(_class_of(source), "_supports_sdpa", False) else "eager"


def _class_of(source: Source) -> Any:
    """The class that a family has for a configuration, the first where there are several (DeiT); None without."""
    known = source.family._model_mapping.get(type(source.config), None)
    return known[0] if isinstance(known, tuple) else known
