"""A plain LoRA adapter with one rank and scale 1: what every runtime reads alike.

Runtimes differ in whether they read ranks and scales of single layers, and some do not say so when they ignore them.
Factors that are padded with zeros to one rank, the scale multiplied into B, leave nothing to be ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from gora.errors import InputError
from gora.files import publish

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM keeps room."""
_WEIGHTS = "adapter_model.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def write_uniform(adapter: Path, destination: Path) -> int:
    """Write an adapter anew with one rank for all layers.

    Args:
        adapter: a plain LoRA adapter of PEFT, with a rank and a scale for each layer.
        destination: the new folder.

    Returns:
        The rank: the least of `RANKS` that holds the greatest of the adapter.

    Raises:
        InputError: a rank is above all of `RANKS`.
    """
    config: Any = PeftConfig.from_pretrained(str(adapter))
    tensors = load_file(adapter / _WEIGHTS)
    names = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    greatest = max(tensors[name + _A].shape[0] for name in names)
    rank = next((known for known in RANKS if known >= greatest), None)
    if rank is None:
        raise InputError(f"{adapter} has a layer of rank {greatest}; runtimes take {RANKS[-1]} at most.")
    padded: dict[str, Tensor] = {}
    for name in names:
        a, b = tensors[name + _A].float(), tensors[name + _B].float() * _scale(config, name, tensors[name + _A])
        padded[name + _A] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])])
        padded[name + _B] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], dim=1).contiguous()
    config.r = config.lora_alpha = rank
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    config.target_modules = sorted({name.rpartition(".")[2] for name in names})
    with publish(destination, sum(value.nbytes for value in padded.values())) as aside:
        aside.mkdir(exist_ok=True)
        config.save_pretrained(str(aside))
        save_file(padded, aside / _WEIGHTS, metadata={"format": "pt"})
    return rank


def _scale(config: Any, name: str, a: Tensor) -> float:
    """What PEFT multiplies B A with in this layer."""
    inner = name.removeprefix("base_model.model.")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), inner), config.lora_alpha)
    rank = a.shape[0]
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))
