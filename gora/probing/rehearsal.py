"""Steps of training that leave no trace: the run's own rows, loss, optimizer and clipping, rates of the caller's."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from gora.data import draw_rows
from gora.methods import METHODS
from gora.models.checkpointing import recompute_activations
from gora.recipe.derived import recomputes_activations, training_micro_batch_size, with_settings
from gora.runs.context import RunContext
from gora.runtime.out_of_memory import release_memory
from gora.training.groups import parameter_groups


class Rehearsal:
    """A model that learns for as long as `rehearsing` lasts.

    Args:
        context: rows and settings.
        model: what is to be trained, at its start.
        lr_ratio: rate of the group `B` over that of all others.
    """

    def __init__(self, context: RunContext, model: nn.Module, lr_ratio: float) -> None:
        recipe = context.recipe
        self._context, self._model = context, model
        self._method = METHODS[recipe.adapter.method]
        self._settings = with_settings(recipe, {"train.learning_rate": 1.0}).train
        self._lr_ratio = lr_ratio
        self._loss_of = context.loss_of(model)
        self._room = training_micro_batch_size(recipe.train)
        self._start = [(value, value.detach().clone()) for value in _trained(model)]
        self.begin()

    def begin(self) -> None:
        """Weights as they were, and an optimizer that has seen nothing."""
        with torch.no_grad():
            for value, before in self._start:
                value.copy_(before)
                value.grad = None
        groups = parameter_groups(self._model, self._settings, self._lr_ratio, self._method.parts)
        self._factors = [group["lr"] for group in groups]
        self._optimizer = self._method.optimizer(self._model, groups) or torch.optim.AdamW(groups)

    @torch.no_grad()
    def loss(self, rows: Sequence[int]) -> float:
        """Loss of these rows of training, no more than one micro-batch holds."""
        return float(self._loss_of(self._micro_batch(rows)).item())

    def learn(self, rows: Sequence[int], rate: float) -> float:
        """One optimizer step on these rows; none where their loss or gradient is not finite, as in training.

        Args:
            rows: of training, any number; they go through the model a micro-batch at a time.
            rate: of A.

        Returns:
            Their loss before the step.
        """
        total = 0.0
        for first in range(0, len(rows), self._room):
            chunk = rows[first : first + self._room]
            loss = self._loss_of(self._micro_batch(chunk)) * (len(chunk) / len(rows))
            total += loss.item()
            loss.backward()
        most = self._settings.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([value for value, _ in self._start], most)
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor
        if math.isfinite(total) and math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _micro_batch(self, rows: Sequence[int]) -> dict[str, Any]:
        chosen = [self._context.data.train[row] for row in rows]
        return self._context.move(self._context.collate(self._model, chosen))


@contextmanager
def rehearsing(context: RunContext, model: nn.Module, lr_ratio: float) -> Iterator[Rehearsal]:
    """A rehearsal, after which weights, the states of all generators and the model's mode are as they were."""
    training, python, numpy = model.training, random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    rehearsal = Rehearsal(context, model, lr_ratio)
    try:
        with torch.random.fork_rng(devices=devices):
            # Without dropout, whose noise would hide how little the first steps change a micro-batch's loss; but models
            # recompute activations in training alone.
            model.train(recomputes_activations(context.recipe.train))
            if model.training:
                recompute_activations(model, True)
            yield rehearsal
    finally:
        rehearsal.begin()
        model.train(training)
        random.setstate(python)
        np.random.set_state(numpy)
        release_memory()


def rows_to_rehearse(context: RunContext, count: int, *, turn: int) -> list[int]:
    """Rows of training, drawn with the run's seed; other ones for another `turn`."""
    rows = context.data.train
    if context.data.stream:
        # They are shuffled, and only these are known.
        return [(turn * count + index) % len(rows) for index in range(count)]
    return draw_rows(rows, count, context.recipe.seed + turn)


def _trained(model: nn.Module) -> Sequence[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]
