"""A learning rate from a range test: how far below the rate at which training falls apart.

In a range test (Smith, arXiv 1506.01186) the rate rises exponentially from step to step. Its loss falls, stays, and
rises above where it began once steps are too large. The rate at which it does so is a multiple of the one that ends
best, measured in 16 searches over methods, target layers and sets on a pre-trained model of 135M parameters
(`docs/learning-rate.md`): 8.7 in a test of 60 steps and 10.7 in one of 30; the value for 45 is between them. On other
models and sets it is right to 1 % of the loss in 17 of 29 combinations: a starting point, and no guarantee.
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


def divergence(
    rates: Sequence[float], losses: Sequence[float], before: Sequence[float], *, clearly: bool = True
) -> float | None:
    """The rate at which the smoothed loss rose above that of the untouched start for the last time.

    A loss that wavers about its start, as that of a new head does in its first steps, rises above it more than once. So
    it has to end clearly above it, and counts from where it was last below.

    Args:
        rates: of the steps that were taken.
        losses: of the micro-batches of those steps, each before its step.
        before: of the same micro-batches before the first step.
        clearly: whether ending a little above the start is not enough.

    Returns:
        None as long as it has not risen.
    """
    if not losses:
        return None
    level = sum(before[: len(losses)]) / len(losses)
    curve = smoothed([loss - start for loss, start in zip(losses, before, strict=False)])
    fell = min(curve) < -_FELL * level
    limit = 0.0 if fell else _ROSE * level
    if curve[-1] <= (_ROSE * level if clearly else limit):
        return None
    last = max((step for step, value in enumerate(curve) if value <= limit), default=None)
    if last is None:
        return rates[0]
    share = (limit - curve[last]) / (curve[last + 1] - curve[last])
    return rates[last] * (rates[last + 1] / rates[last]) ** share


def rate_below(divergence: float) -> float:
    """The rate to train with, rounded to two digits."""
    return float(f"{divergence / BELOW_DIVERGENCE:.1e}")
