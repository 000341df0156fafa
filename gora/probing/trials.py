"""Short trainings, each annealed to nothing, with rates around a first guess: which one ends lowest?"""

from __future__ import annotations

import math

from gora.core.learning_rate import annealed, smoothed
from gora.probing.range_test import TOLERATED
from gora.probing.rehearsal import Rehearsal
from gora.runtime.console import output
from gora.runtime.progress import Meter

STEPS, FEWEST, ROWS = 45, 12, 4
"""Steps of a trial, the fewest that say anything, and rows of a step. Many steps of few rows tell more than few steps
of many: what a high rate gains at first it loses later."""
FACTORS = (0.5, 1.0, 2.0)
MOST = len(FACTORS) + 1
"""Trials: a fourth one where the lowest or the highest rate of three is the best."""
_COUNTED = 4
"""A trial ends at the mean of the last one in so many of its losses. All see the same rows, and can be compared."""
APART = 2.0
"""Times the loss at the start: a trial whose smoothed loss is above that ends there."""


def try_around(
    rehearsal: Rehearsal, guess: float, batches: list[list[int]], *, start: float
) -> tuple[list[float], list[float]]:
    """Trials at half a rate, the rate and twice the rate, and one beyond where the lowest or the highest is the best.

    Args:
        rehearsal: of the run.
        guess: peak rate of A.
        batches: rows of each step.
        start: loss before training, of many rows.

    Returns:
        Rates, rising, and the loss at the end of each trial.
    """
    rates = [guess * factor for factor in FACTORS]
    ends = try_rates(rehearsal, rates, batches, start=start)
    if ends[0] == min(ends):  # also where training fell apart at all three
        rates.insert(0, rates[0] / 2)
        ends = [*try_rates(rehearsal, rates[:1], batches, start=start), *ends]
    elif ends[-1] == min(ends):
        rates.append(2 * rates[-1])
        ends += try_rates(rehearsal, rates[-1:], batches, start=start)
    return rates, ends


def try_rates(rehearsal: Rehearsal, rates: list[float], batches: list[list[int]], *, start: float) -> list[float]:
    """The loss at the end of a short training with each rate, from the model's start and on the same rows.

    Args:
        rehearsal: of the run.
        rates: peak rates of A.
        batches: rows of each step.
        start: loss before training, of many rows: those of one step may be much easier.

    Returns:
        In the order of the rates; twice that at the start where training fell apart.
    """
    ends = []
    with Meter(output, "learning rate", len(rates) * len(batches)) as meter:
        for rate in rates:
            rehearsal.begin()
            losses: list[float] = []
            end = APART * start
            for step, rows in enumerate(batches):
                losses.append(rehearsal.learn(rows, rate * annealed(step, len(batches))))
                meter.advance()
                if _fell_apart(losses, start, len(batches)):
                    break
            else:
                last = _finite(losses[-max(1, round(len(batches) / _COUNTED)) :])
                end = min(end, sum(last) / len(last))
            ends.append(end)
    return ends


def _fell_apart(losses: list[float], start: float, steps: int) -> bool:
    """Whether training has by its losses so far; a few that are not finite are those of single rows."""
    finite = _finite(losses)
    if len(losses) - len(finite) > TOLERATED * steps:
        return True
    return bool(finite) and not smoothed(finite)[-1] < APART * max(start, finite[0])


def _finite(losses: list[float]) -> list[float]:
    return [loss for loss in losses if math.isfinite(loss)]
