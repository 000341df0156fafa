"""The numbers of a vision model: how many tokens an image has in each block shows when one runs without values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gora.estimate.shapes import BlockShape, ModelShape, model_shape, read_block
from gora.models.language import in_adapted_part
from gora.models.vision import is_two_towers


def read_vision_shape(model: nn.Module, adapted: Collection[str], size: tuple[int, int]) -> ModelShape:
    """Read a vision model's numbers off its modules; those of the tower that sees, where it has two.

    Args:
        model: not wrapped; all of it on the meta device.
        adapted: names of the layers to adapt.
        size: height and width of an image as the model is given it.
    """
    config: Any = model.config.vision_config if is_two_towers(model) else model.config  # type: ignore[union-attr]
    belongs = in_adapted_part(model)
    blocks = {name: block for name, block in _blocks(model) if belongs(name)}
    seen = _inputs_of(model, blocks, (int(getattr(config, "num_channels", 3)), *size))
    heads = getattr(config, "num_attention_heads", 1)
    shapes = [
        _read(name, block, seen[name], heads if isinstance(heads, int) else 1, adapted)
        for name, block in blocks.items()
        if name in seen
    ]
    if not shapes:
        raise ValueError(f"{type(model).__name__} shows no blocks")
    return model_shape(model, shapes, shapes[0].hidden, adapted)


def _read(name: str, block: nn.Module, shape: torch.Size, heads: int, adapted: Collection[str]) -> BlockShape:
    # Images x tokens x width, or images x width x height x width of a map.
    hidden = shape[1] if len(shape) == 4 else shape[-1]
    numbers = SimpleNamespace(hidden_size=hidden, num_attention_heads=heads)
    return replace(read_block(name, block, numbers, adapted), tokens=shape.numel() // (shape[0] * hidden))


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The innermost blocks: a stage of Swin is one that holds others."""
    found = {name: module for name, module in model.named_modules() if _is_block(module)}
    for name, module in found.items():
        if not any(other.startswith(f"{name}.") for other in found):
            yield name, module


def _is_block(module: nn.Module) -> bool:
    # ConvNeXt's layers recompute nothing by themselves.
    holds_linear = any(isinstance(inner, nn.Linear) for inner in module.modules())
    is_layer = isinstance(module, GradientCheckpointingLayer) or type(module).__name__.endswith("Layer")
    return is_layer and holds_linear


@torch.no_grad()
def _inputs_of(model: nn.Module, blocks: dict[str, nn.Module], image: tuple[int, ...]) -> dict[str, torch.Size]:
    """The shape of what each block is given for one image."""
    seen: dict[str, torch.Size] = {}

    def noting(name: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            seen.setdefault(name, tensors[0].shape)

        return note

    handles = [block.register_forward_pre_hook(noting(name), with_kwargs=True) for name, block in blocks.items()]
    sees: Any = model.vision_model if is_two_towers(model) else model
    # What follows the last block may want values.
    with suppress(RuntimeError, NotImplementedError):
        sees(pixel_values=torch.empty((1, *image), device="meta"))
    for handle in handles:
        handle.remove()
    return seen
