"""Taps: how a frozen linear layer's weight gradient is had without asking autograd for it.

A tap hands on a copy of a layer's output. In the backward pass it meets the gradient of that output and the input of
the layer, which is all that a weight gradient is made of, and hands both to a sink. The layer itself is untouched: it
may be a Linear, a Conv1D, or a quantised layer whose weight has no gradient at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Sink = Callable[[Tensor, Tensor], None]
"""Takes the gradient of a layer's output, (..., out), and the layer's input, (..., in)."""


@contextmanager
def tapped(layers: Mapping[str, nn.Module], sink_of: Callable[[str], Sink]) -> Iterator[None]:
    """Inside the block every forward of a layer is tapped; afterwards the layers are as they were.

    Inputs are saved through autograd, so that activation checkpointing recomputes them like everything else.
    """
    replaced = {layer: layer.__dict__.get("forward") for layer in layers.values()}
    try:
        for name, layer in layers.items():
            layer.forward = _with_tap(layer.forward, sink_of(name))
        yield
    finally:
        for layer, before in replaced.items():
            layer.__dict__.pop("forward", None)
            if before is not None:
                layer.forward = before


def _with_tap(forward: Callable[..., Tensor], sink: Sink) -> Callable[..., Tensor]:
    # Gives the first layers of a frozen model, whose inputs need no gradient, a graph of their own.
    trigger = torch.empty(0, requires_grad=True)

    def tapped_forward(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return output
        (inputs,) = args[:1] or tuple(kwargs.values())[:1]
        tapped: Tensor = _Tap.apply(output, inputs, None if output.requires_grad else trigger, sink)  # type: ignore[no-untyped-call]
        return tapped

    return tapped_forward


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, trigger: Tensor | None, sink: Sink) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.sink = sink
        # A copy, not the output itself: what a function of autograd hands on unchanged counts as a view, into which
        # nobody may write, and some models add to the output of a linear layer in place (Falcon's parallel attention).
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        ctx.sink(gradient, *ctx.saved_tensors)
        return (gradient if ctx.needs_input_grad[0] else None), None, None, None
