"""Mean weight gradients over micro-batches (paper, section 3.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gora.errors import GoraError


@dataclass(frozen=True)
class Step:
    """What one micro-batch told."""

    index: int
    loss: float
    """Mean loss over the micro-batch's supervised tokens."""
    tokens: int
    """Tokens that are not padding."""


class GradientSums:
    """Adds up the weight gradients of the target layers, in float32, while it is entered.

    Inside the `with` block only the targets' weights require gradients. Each is added to its sum and freed as soon as
    the backward pass has finished it, so that at most one layer's gradient is alive beside the sums. A weight that
    several layers share has one sum. On leaving, every parameter requires what it required before.

    Args:
        model: the base model.
        targets: the layers, by name.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, nn.Module]) -> None:
        self._model = model
        self._weights: dict[str, nn.Parameter] = {name: module.weight for name, module in targets.items()}  # type: ignore[misc]
        self._sums: dict[nn.Parameter, Tensor] = {}

    def __enter__(self) -> GradientSums:
        self._required = {parameter: parameter.requires_grad for parameter in self._model.parameters()}
        self._model.requires_grad_(False)
        self._hooks = []
        for weight in dict.fromkeys(self._weights.values()):
            weight.requires_grad_(True)
            self._sums[weight] = torch.zeros_like(weight, dtype=torch.float32)
            self._hooks.append(weight.register_post_accumulate_grad_hook(self._add))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)
            parameter.grad = None

    def mean(self, name: str, steps: int) -> Tensor:
        """Mean gradient of one layer over `steps` micro-batches, float32, shaped like its weight."""
        return self._sums[self._weights[name]] / steps

    def _add(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self._sums[weight].add_(weight.grad)  # type: ignore[index]
        weight.grad = None


def collect(
    model: nn.Module,
    sums: GradientSums,
    micro_batches: Iterable[Mapping[str, Tensor]],
    loss_of: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    on_step: Callable[[Step], Any] = lambda step: None,
) -> int:
    """Run every micro-batch forward and backward; each counts equally, whatever its number of tokens.

    Args:
        model: the base model.
        sums: where gradients go.
        micro_batches: dictionaries of tensors on the model's device, with `attention_mask`.
        loss_of: mean loss of a micro-batch, a scalar with a graph.
        on_step: told of every micro-batch after its backward pass.

    Returns:
        The number of micro-batches.

    Raises:
        GoraError: a loss is NaN or infinite.
    """
    count = 0
    with sums:
        for index, batch in enumerate(micro_batches):
            loss = loss_of(model, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise GoraError(
                    f"The loss of micro-batch {index} is {value}. "
                    "Look at its rows with --show-sample, or compute in float32 (model.dtype: float32)."
                )
            loss.backward()
            count += 1
            on_step(Step(index, value, int(batch["attention_mask"].sum())))
    return count
