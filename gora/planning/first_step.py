"""The loss with a plan's first step in any size, on micro-batches that the gradients have not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, no_grad

from gora.core.search import Found, least_along
from gora.plan import Decision, Factors, Plan
from gora.planning.micro_batches import HELD_BACK, MicroBatches
from gora.runs.context import RunContext
from gora.runtime.console import output

LossAt = Callable[[float], float]
_CLEARLY = 1.001
_PART = 16


@dataclass
class _Size:
    """How many times the plan's step is taken."""

    times: float = 0.0


@contextmanager
def trying_steps(
    context: RunContext, model: nn.Module, plan: Plan, factors: Factors, batches_used: int = HELD_BACK
) -> Iterator[LossAt]:
    """Inside the block: the mean loss of the held-back micro-batches with the plan's B at another gamma.

    B is linear in gamma, so that a value costs a forward pass. Every process asks for the same values.

    Args:
        context: rows, arithmetic and processes.
        model: the base model, which stays as it is.
        plan: of layers only; its own gamma is above zero.
        factors: its A and B.
        batches_used: how many of the held-back micro-batches a loss is the mean of.
    """
    size = _Size()
    batches = MicroBatches(context, model)
    loss_of, was_training = context.loss_of(model), model.training
    with ExitStack() as stack:
        for module in plan.adapted:
            factor_a, factor_b = (factor.to(context.device) for factor in factors[module.name])
            layer = model.get_submodule(module.name)
            stack.callback(layer.register_forward_hook(_adding(factor_a, factor_b, module.scaling, size)).remove)

        @no_grad()
        def loss_at(gamma: float) -> float:
            size.times = gamma / plan.gamma
            total = 0.0
            for turn in range(math.ceil(batches_used / context.world.size)):
                index = turn * context.world.size + context.world.index
                # Where weights are shared out, a process without a micro-batch takes part in the others' passes.
                value = loss_of(batches.held_back(index % batches_used)).item()
                total += value if index < batches_used else 0.0
            return context.world.total(total) / batches_used

        model.eval()
        try:
            yield loss_at
        finally:
            model.train(was_training)


def search_gamma(context: RunContext, model: nn.Module, plan: Plan, factors: Factors) -> Decision:
    """The gamma with the least loss on the held-back micro-batches, with the curve that shows it.

    Args:
        plan: made with the gamma to begin with, and `factors` its A and B.
    """
    with trying_steps(context, model, plan, factors) as loss_at:
        found = least_along(loss_at, plan.gamma)
    say_start({"base": found.base, "start": found.least}, found.value, HELD_BACK)
    return Decision(
        value=found.value, origin="measured", why=_why(found, _rows(context, plan.steps)), curve=found.curve
    )


def compare_start(context: RunContext, model: nn.Module, plan: Plan, factors: Factors) -> dict[str, float]:
    """Loss on held-back micro-batches of the `base` model and with the plan's `start`; said, with what to do.

    Of so few micro-batches that it takes a small part of the time of the pass.
    """
    used = max(1, min(HELD_BACK, plan.steps // _PART))
    with trying_steps(context, model, plan, factors, used) as loss_at:
        losses = {"base": loss_at(0.0), "start": loss_at(plan.gamma)}
    say_start(losses, plan.gamma, used)
    return losses


def say_start(losses: dict[str, float], gamma: float, batches: int) -> None:
    """Both losses, over so many micro-batches, and a warning where the first step alone makes the model worse."""
    if not gamma:
        output.say(f"start     no first step beats the base model's loss, {losses['base']:.4f}: B is zero (gamma 0)")
        return
    told = f"{losses['base']:.4f} with the base model, {losses['start']:.4f} with the first step"
    output.say(
        f"start     loss {told} (gamma {gamma:g}), on {batches} held-back micro-batch{'' if batches == 1 else 'es'}"
    )
    if not losses["start"] <= _CLEARLY * losses["base"]:
        output.warn(
            f"The first step raises the loss from {losses['base']:.4f} to {losses['start']:.4f}: gamma {gamma:g} is "
            f"too large for this model and data. Set gora.gamma: auto, which looks for the best, or "
            f"{float(f'{gamma / 8:.1g}'):g}."
        )


def _rows(context: RunContext, steps: int) -> str:
    batches = MicroBatches(context)
    seen = batches.held_back_and_seen(steps)
    told = f", but the gradients have seen {seen} of their {HELD_BACK * batches.size} rows" if seen else ""
    return f"{HELD_BACK} micro-batches held back{told}"


def _why(found: Found, rows: str) -> str:
    tried = f"{len(found.curve)} values tried on {rows}"
    if not found.value:
        return f"no first step beats the base's loss, {found.base:.4f}; {tried}"
    between = f"between {found.below:.3g} and {found.above:.3g}" if math.isfinite(found.above) else "the largest tried"
    return f"loss {found.least:.4f}, {found.base:.4f} with the base, {between}; {tried}"


def _adding(factor_a: Tensor, factor_b: Tensor, scaling: float, size: _Size) -> Callable[..., Tensor | None]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...], result: Tensor) -> Tensor | None:
        if not size.times:
            return None
        narrow = inputs[0].to(factor_a.dtype) @ factor_a.T
        return result + (size.times * scaling * (narrow @ factor_b.T)).to(result.dtype)

    return hook
