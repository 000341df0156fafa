"""A model whose weights stay in its files: each block's are in memory while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from gora.models.load import empty_model
from gora.models.source import Source
from gora.models.stored_tensors import StoredTensor, stored_tensors, tensors_of


def streamable_model(
    source: Source, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, dict[str, StoredTensor], list[StoredTensor]] | None:
    """A language model without its weights, where every weight is one tensor of the files.

    Args:
        source: where it lies.
        dtype: of its weights; None is that of its configuration.

    Returns:
        The model, its tensors by their names in it, and all tensors of the files, also those of parts that are not
        loaded. None where the model brings code of its own, has a new head, or is made of converted tensors.
    """
    if source.head != "language" or source.quantized_files or getattr(source.config, "auto_map", None):
        return None
    stored = stored_tensors(source)
    if not stored:
        return None
    # Buffers that no file holds are computed while the model is made.
    with init_empty_weights(include_buffers=False):
        model = source.family.from_config(source.config, dtype=dtype or source.config.dtype or torch.float32)
    model.tie_weights()
    model.requires_grad_(False)
    held = tensors_of(model, stored)
    return None if held is None else (model.eval(), held, stored)


def changes_weights(source: Source) -> bool:
    """Whether a model writes into its own weights as it runs, as RWKV does: what is in memory is not what is stored."""
    model = empty_model(source).eval()
    written = {name: value._version for name, value in model.named_parameters()}
    # Most models run on nothing but shapes; the others stop somewhere, which says nothing.
    with torch.no_grad(), suppress(Exception):
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device="meta"))
    return any(value._version != written[name] for name, value in model.named_parameters())


def stream_weights(
    model: PreTrainedModel, held: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Let every block of a model read its weights from the files when it runs, and forget them afterwards.

    Args:
        model: from `streamable_model`; may be wrapped by PEFT afterwards.
        held: its tensors.
        dtype: of the weights in memory.
        device: where they go.
    """
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            owner, own = _owner(model, name)
            value = held[name].read() if name in held else buffer
            setattr(owner, own, value.to(device))
    by_value = {id(value): held[name] for name, value in model.named_parameters(remove_duplicate=False) if name in held}
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for own, value in list(module.named_parameters(recurse=False)):
            if id(value) not in empty:
                empty[id(value)] = _empty(value, dtype, device)
            setattr(module, own, empty[id(value)])
    tensors = {id(empty[number]): tensor for number, tensor in by_value.items()}
    for unit in _units(model):
        reader = _Reader(unit, tensors, dtype, device)
        unit.register_forward_pre_hook(reader.read)
        unit.register_forward_hook(reader.forget, always_call=True)


def _empty(value: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A parameter of the same shape that takes no memory, but of a vector: whoever computes with it gets NaN."""
    shape = value.shape
    nothing = torch.full(shape if len(shape) < 2 else (1,), torch.nan, dtype=dtype, device=device).expand(shape)
    return nn.Parameter(nothing, requires_grad=False)


class _Reader:
    """The weights of one block."""

    def __init__(
        self, unit: nn.Module, by_value: Mapping[int, StoredTensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype, self._device = dtype, device
        self._places = [
            (module, own, value, by_value[id(value)])
            for module in unit.modules()
            for own, value in module.named_parameters(recurse=False)
            if id(value) in by_value
        ]

    def read(self, *_: Any) -> None:
        """Before the block runs."""
        for module, own, empty, stored in self._places:
            # A bias that the adapter brings is there already.
            if empty.dim() > 1 or empty.isnan().all():
                value = stored.read().to(self._device, self._dtype)
                setattr(module, own, nn.Parameter(value, requires_grad=False))

    def forget(self, *_: Any) -> None:
        """After it has run."""
        for module, own, empty, _stored in self._places:
            setattr(module, own, empty)


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a model, whole, and each module outside of them that has weights of its own."""
    blocks = [
        f"{name}.{number}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for number in range(len(module))
    ]
    outermost = {block for block in blocks if not any(block != other and block.startswith(other) for other in blocks)}
    for name, module in model.named_modules():
        if f"{name}." in outermost or (
            not f"{name}.".startswith(tuple(outermost)) and any(True for _ in module.parameters(recurse=False))
        ):
            yield module


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own
