"""MLX's own adapter files: factors the other way round, layers by their place within a block."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gora.adapters.forms import LoraTensors
from gora.errors import GoraError, InputError
from gora.files import write_json

_WEIGHTS = "adapters.safetensors"
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")


def refuse_for_mlx(lora: LoraTensors) -> list[str]:
    """Layers that MLX does not adapt: it looks for them inside the blocks alone."""
    return [f"{name}: MLX adapts layers inside the blocks alone." for name in lora.pairs if not _LAYER.fullmatch(name)]


def write_mlx(lora: LoraTensors, folder: Path) -> None:
    """Write a uniform adapter as MLX reads it, and read it back.

    Args:
        lora: in the uniform form.
        folder: being made; `adapters.safetensors` holds `lora_a` (in, rank) and `lora_b` (rank, out) of every layer,
            `adapter_config.json` the rank, the scale and the names of the layers within a block.

    Raises:
        GoraError: the files do not hold the adapter.
    """
    places = {name: _LAYER.fullmatch(name) for name in lora.pairs}
    if None in places.values():
        raise InputError("The adapter cannot be written for MLX.", refuse_for_mlx(lora))
    keys = sorted({place[2] for place in places.values() if place})
    blocks = 1 + max(int(place[1]) for place in places.values() if place)
    rank = int(lora.config.r)
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in lora.pairs.items():
        tensors |= {f"{name}.lora_a": a.T.contiguous(), f"{name}.lora_b": b.T.contiguous()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "mlx"})
    parameters = {"rank": rank, "scale": lora.config.lora_alpha / rank, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": blocks, "lora_parameters": parameters}
    write_json(folder / "adapter_config.json", {"model": lora.config.base_model_name_or_path, **config})
    held = load_file(folder / _WEIGHTS)
    for name, (a, b) in lora.pairs.items():
        if not (torch.equal(held[f"{name}.lora_a"].T, a) and torch.equal(held[f"{name}.lora_b"].T, b)):
            raise GoraError(f"{folder / _WEIGHTS} does not hold {name} as it is in the adapter.")
