"""A few steps with a rising learning rate: where does training fall apart?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gora.core.learning_rate import divergence, rising_rates, smoothed
from gora.errors import GoraError
from gora.probing.rehearsal import Rehearsal
from gora.runtime.console import output
from gora.runtime.progress import Meter

STEPS = 45
"""Micro-batches of a range test; each is one step, with a forward pass of each before."""
TOLERATED = 0.1
"""Share of micro-batches whose loss may be NaN or infinite, as in the gradient pass: that of a few rows always is."""
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


def range_test(rehearsal: Rehearsal, batches: list[list[int]], *, whole_weights: bool) -> RangeTest:
    """Train on a micro-batch per step, the rate rising with each, until the loss has risen above where it began.

    A micro-batch whose loss is not finite before the first step is left out, as steps of training are skipped.

    Args:
        rehearsal: at the model's start.
        batches: rows of each step, no more than a micro-batch holds.
        whole_weights: whether those are trained, and no adapter: rates are ten times lower.

    Returns:
        Rates of A, the loss of a micro-batch before the step with each, and that at the start.

    Raises:
        GoraError: more than a tenth of the micro-batches would be left out.
    """
    measured = [(rows, rehearsal.loss(rows)) for rows in batches]
    batches = [rows for rows, loss in measured if math.isfinite(loss)]
    before = [loss for _, loss in measured if math.isfinite(loss)]
    left_out = len(measured) - len(batches)
    if left_out > TOLERATED * len(measured):
        raise GoraError(
            f"train.learning_rate: auto: the loss of {left_out} of {len(measured)} micro-batches is NaN or infinity "
            "before training. Look at the rows, or compute in float32 (train.precision: fp32, model.dtype: float32).",
            code="not-finite",
        )
    rates = rising_rates(*(_WEIGHTS if whole_weights else _ADAPTERS), len(batches))
    losses: list[float] = []
    with Meter(output, "learning rate", len(batches)) as meter:
        for step, rate in enumerate(rates, 1):
            losses.append(rehearsal.learn(batches[step - 1], rate))
            if divergence(rates[:step], losses, before) is not None:
                break
            meter.advance()
    return RangeTest(rates=rates[: len(losses)], losses=losses, before=before[: len(losses)])
