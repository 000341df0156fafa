"""A learning rate from a range test: how far below the rate at which training falls apart.

In a range test (Smith, arXiv 1506.01186) the rate rises exponentially from step to step. Its loss falls, stays, and
rises above where it began once steps are too large. The rate at which it does so is a multiple of the one that ends
best, measured in 16 searches over methods, target layers and sets on a pre-trained model of 135M parameters
(`docs/learning-rate.md`): 8.7 in a test of 60 steps and 10.7 in one of 30. Between them lies the value for 45.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BELOW_DIVERGENCE = 9.5
_DECAY = 0.7
_FELL = 0.005
"""Share of the loss by which it has to fall before a rise to where it was counts."""
_ROSE = 0.05
"""Share by which a loss that never fell has to rise."""
_WORST = 50.0
"""In place of a loss that is no number."""


def rising_rates(lowest: float, highest: float, steps: int) -> list[float]:
    """Rates from the lowest to the highest, each a fixed multiple of the one before."""
    growth = (highest / lowest) ** (1 / (steps - 1))
    return [lowest * growth**step for step in range(steps)]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential moving average without the bias of its beginning."""
    mean, values = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = _DECAY * mean + (1 - _DECAY) * (loss if math.isfinite(loss) else _WORST)
        values.append(mean / (1 - _DECAY**step))
    return values


def divergence(rates: Sequence[float], losses: Sequence[float], before: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss, past its lowest point, rises above that of the untouched start.

    Args:
        rates: of the steps that were taken.
        losses: of the micro-batches of those steps, each before its step.
        before: of the same micro-batches before the first step.

    Returns:
        None as long as it has not risen.
    """
    if not losses:
        return None
    level = sum(before[: len(losses)]) / len(losses)
    curve = smoothed([loss - start for loss, start in zip(losses, before, strict=False)])
    lowest = min(range(len(curve)), key=curve.__getitem__)
    limit = 0.0 if curve[lowest] < -_FELL * level else _ROSE * level
    for step in range(max(lowest, 1), len(curve)):
        if curve[step] > limit:
            share = (limit - curve[step - 1]) / (curve[step] - curve[step - 1])
            return rates[step - 1] * (rates[step] / rates[step - 1]) ** min(max(share, 0.0), 1.0)
    return None


def rate_below(divergence: float) -> float:
    """The rate to train with, rounded to two digits."""
    return float(f"{divergence / BELOW_DIVERGENCE:.1e}")
