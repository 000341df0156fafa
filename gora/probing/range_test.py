"""A few steps with a rising learning rate, after which everything is as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gora.core.learning_rate import divergence, rising_rates, smoothed
from gora.data import draw_rows
from gora.methods import METHODS
from gora.models.checkpointing import recompute_activations
from gora.recipe.derived import recomputes_activations, training_micro_batch_size, with_settings
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.out_of_memory import release_memory
from gora.runtime.progress import Meter
from gora.training.groups import parameter_groups

STEPS = 45
"""Micro-batches of a range test; each is one step. With a forward pass of each before, it costs as much as 60."""
ROWS = 8
"""Rows of a micro-batch, or as many as training has if those are fewer."""
_ADAPTERS, _WEIGHTS = (1e-5, 1.0), (1e-6, 1e-1)
"""Lowest and highest rate, for adapters and for whole weights."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: of A, rising.
        losses: of a micro-batch before the step with each rate.
        before: of the same micro-batches before the first step.
    """

    rates: list[float]
    losses: list[float]
    before: list[float]

    @property
    def limit(self) -> float | None:
        """The rate from which on the loss was above its start; None where it never was."""
        found = divergence(self.rates, self.losses, self.before)
        return divergence(self.rates, self.losses, self.before, clearly=False) if found is None else found

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """Each rate, and the smoothed loss over that of the start."""
        level = sum(self.before) / len(self.before)
        differences = smoothed([loss - start for loss, start in zip(self.losses, self.before, strict=True)])
        return tuple(zip(self.rates, [level + each for each in differences], strict=True))


def range_test(context: RunContext, model: nn.Module, lr_ratio: float) -> RangeTest:
    """Train on a micro-batch a step, the rate rising with each, until the loss has risen above where it began.

    Weights, the states of all generators and the model's mode are put back.

    Args:
        context: rows and settings.
        model: what is to be trained, at its start.
        lr_ratio: rate of the group `B` over that of all others.

    Returns:
        Rates of A, the loss of a micro-batch before the step with each, and that at the start.
    """
    recipe, method = context.recipe, METHODS[context.recipe.adapter.method]
    rates = rising_rates(*(_WEIGHTS if method.saved_as == "model" else _ADAPTERS), STEPS)
    size = min(ROWS, training_micro_batch_size(recipe.train), len(context.data.train))
    rows = _rows(context, STEPS * size)
    losses: list[float] = []

    def micro_batch(step: int) -> dict[str, Any]:
        chosen = [context.data.train[row] for row in rows[step * size : (step + 1) * size]]
        return context.move(context.collate(model, chosen))

    with _as_it_was(model), Meter(output, "learning rate", STEPS) as meter:
        # Without dropout, whose noise would hide how little the first steps change a micro-batch's loss; but models
        # recompute activations in training alone.
        model.train(recomputes_activations(recipe.train))
        if model.training:
            recompute_activations(model, True)
        unit = with_settings(recipe, {"train.learning_rate": 1.0})
        groups = parameter_groups(model, unit.train, lr_ratio, method.parts)
        factors = [group["lr"] for group in groups]
        optimizer = method.optimizer(model, groups) or torch.optim.AdamW(groups)
        loss_of = context.loss_of(model)
        with torch.no_grad():
            before = [loss_of(micro_batch(step)).item() for step in range(STEPS)]
        for step, rate in enumerate(rates):
            loss = loss_of(micro_batch(step))
            losses.append(loss.item())
            if divergence(rates[: step + 1], losses, before) is not None:
                break
            loss.backward()
            if recipe.train.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(_trained(model), recipe.train.max_grad_norm)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.advance(1)
    release_memory()
    return RangeTest(rates=rates[: len(losses)], losses=losses, before=before[: len(losses)])


def _rows(context: RunContext, count: int) -> list[int]:
    rows = context.data.train
    if context.data.stream:
        # They are shuffled, and only these are known.
        return [index % len(rows) for index in range(count)]
    return draw_rows(rows, count, context.recipe.seed + 1)


def _trained(model: nn.Module) -> Sequence[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back what a trial changes."""
    kept = [(value, value.detach().clone()) for value in _trained(model)]
    training, python, numpy = model.training, random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
                value.grad = None
        model.train(training)
        random.setstate(python)
        np.random.set_state(numpy)
