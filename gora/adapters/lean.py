"""LoRA layers in the arithmetic of their base: A and B stay float32, their products are computed in the base's type.

PEFT casts every input to the type of A. With float32 values on a bfloat16 base, that is a copy of each layer's input at
four bytes a number, kept for the backward pass, where the input itself lies there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear, pad

_MULTIPLE = 8
"""Tensor cores read bfloat16 eight at a time: ranks in between are filled up with zeros for the products."""


def make_lean(model: nn.Module) -> bool:
    """Replace the forward pass of plain LoRA layers on linear layers in half precision.

    Layers with dropout, DoRA or several adapters keep PEFT's.

    Returns:
        Whether the whole model can be run without autocast: all else is in the base's type.
    """
    if not isinstance(model, PeftModel):
        return False
    layers = [module for module in model.modules() if isinstance(module, Linear) and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    lean = {id(weight) for layer in layers for weight in (_a(layer), _b(layer))}
    rest = {value.dtype for value in model.parameters() if value.is_floating_point() and id(value) not in lean}
    return bool(layers) and rest == {torch.bfloat16}


def _is_plain(layer: Linear) -> bool:
    (adapter, *others) = layer.active_adapters or [""]
    return (
        not others
        and set(layer.lora_A) == {adapter}
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and not layer.lora_bias.get(adapter, False)
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.weight.dtype == torch.bfloat16
        and not layer.base_layer.weight.requires_grad
    )


def _a(layer: Linear) -> Tensor:
    return cast(Tensor, layer.lora_A[layer.active_adapters[0]].weight)


def _b(layer: Linear) -> Tensor:
    return cast(Tensor, layer.lora_B[layer.active_adapters[0]].weight)


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of the layer's `forward`: W x + s B A x."""
    if self.disable_adapters or self.merged or args or kwargs or x.dtype != torch.bfloat16:
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    base: Any = self.base_layer
    scaling = self.scaling[self.active_adapters[0]]
    if torch.compiler.is_compiling():
        # It fuses the sums by itself.
        a, b = _narrow(_a(self), _b(self), scaling, x.dtype)
        return linear(x, base.weight, base.bias) + linear(linear(x, a), b)
    narrow = _kept_narrow(self, scaling, x.dtype)
    result: Tensor = _LowRank.apply(x, base.weight, base.bias, _a(self), _b(self), scaling, narrow)
    return result


Narrow = tuple[Tensor, Tensor]
_kept: dict[Linear, Narrow] | None = None


@contextmanager
def values_at_rest() -> Iterator[None]:
    """Inside the block, in which nothing changes the values of adapters, those that are multiplied are made once for
    each layer: an optimizer step has many micro-batches."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


@torch.no_grad()
def _kept_narrow(layer: Linear, scaling: float, dtype: torch.dtype) -> Narrow:
    # What is recorded has to see the values of every replay.
    recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if _kept is None or recording:
        return _narrow(_a(layer), _b(layer), scaling, dtype)
    if layer not in _kept:
        _kept[layer] = _narrow(_a(layer), _b(layer), scaling, dtype)
    return _kept[layer]


def _narrow(a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype) -> Narrow:
    """A and s B as they are multiplied."""
    missing = -len(a) % _MULTIPLE
    a, b = a.to(dtype), (b * scaling).to(dtype)
    return (pad(a, (0, 0, 0, missing)), pad(b, (0, missing))) if missing else (a, b)


class _LowRank(torch.autograd.Function):
    """W x + s B A x with a frozen W: the second product is added where the first was written, in both passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        narrow: Narrow | None = None,
    ) -> Tensor:
        flat, (narrow_a, narrow_b) = x.reshape(-1, x.shape[-1]), narrow or _narrow(a, b, scaling, x.dtype)
        result = linear(flat, weight, bias)
        within = flat @ narrow_a.T
        result.addmm_(within, narrow_b.T)
        ctx.save_for_backward(flat, within, weight, narrow_a, narrow_b)
        ctx.rank, ctx.scaling = len(a), scaling
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, within, weight, a, b = ctx.saved_tensors
        (grad,) = grads
        outer = grad.reshape(-1, grad.shape[-1])
        inner = outer @ b
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = (outer @ weight).addmm_(inner, a).view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            of_a = _outer_product(inner, flat)[: ctx.rank]
        if ctx.needs_input_grad[4]:
            of_b = _outer_product(outer, within)[:, : ctx.rank] * ctx.scaling
        return of_x, None, None, of_a, of_b, None, None


def _outer_product(one: Tensor, other: Tensor) -> Tensor:
    """one^T other in float32."""
    if one.is_cuda:
        return torch.mm(one.T, other, out_dtype=torch.float32)
    return one.T.float() @ other.float()
