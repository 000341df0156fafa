"""Short trainings, each annealed to nothing, with rates around a first guess: which one ends lowest?"""

from __future__ import annotations

import math

from gora.core.learning_rate import annealed
from gora.probing.rehearsal import Rehearsal
from gora.runtime.console import output
from gora.runtime.progress import Meter

STEPS = 12
FACTORS = (0.5, 1.0, 2.0)
MOST = len(FACTORS) + 1
"""Trials: a fourth one where the highest rate of three is clearly the best."""
_STILL_FALLING = 0.5
"""Share of the gain from the first to the second rate that the third has to gain as well."""
_COUNTED = 3
"""The last losses, whose mean is that of a trial. All trials see the same rows, so that these can be compared."""
_APART = 2.0
"""Times the loss at the start: a trial ends there."""


def try_around(rehearsal: Rehearsal, guess: float, batches: list[list[int]]) -> tuple[list[float], list[float]]:
    """Trials at half a rate, the rate and twice the rate, and at four times where the loss falls on and on.

    Args:
        rehearsal: of the run.
        guess: peak rate of A.
        batches: rows of each step.

    Returns:
        Rates, rising, and the loss at the end of each trial.
    """
    rates = [guess * factor for factor in FACTORS]
    ends = try_rates(rehearsal, rates, batches)
    low, middle, high = ends
    if high == min(ends) and middle - high > _STILL_FALLING * (low - middle):
        rates.append(2 * rates[-1])
        ends += try_rates(rehearsal, rates[-1:], batches)
    return rates, ends


def try_rates(rehearsal: Rehearsal, rates: list[float], batches: list[list[int]]) -> list[float]:
    """The loss at the end of a short training with each rate, from the model's start and on the same rows.

    Args:
        rehearsal: of the run.
        rates: peak rates of A.
        batches: rows of each step.

    Returns:
        In the order of the rates; twice that at the start where training fell apart.
    """
    ends = []
    with Meter(output, "learning rate", len(rates) * len(batches)) as meter:
        for rate in rates:
            rehearsal.begin()
            losses: list[float] = []
            for step, rows in enumerate(batches):
                losses.append(rehearsal.learn(rows, rate * annealed(step, len(batches))))
                meter.advance(1)
                if not losses[-1] < _APART * losses[0]:
                    break
            end = sum(losses[-_COUNTED:]) / len(losses[-_COUNTED:])
            complete = len(losses) == len(batches) and math.isfinite(end)
            ends.append(min(end, _APART * losses[0]) if complete else _APART * losses[0])
    return ends
