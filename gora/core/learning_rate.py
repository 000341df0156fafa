"""A learning rate from a range test and from short trials.

In a range test (Smith, arXiv 1506.01186) the rate rises exponentially from step to step. Its loss falls, stays, and
rises above where it began once steps are too large. The rate at which it does so is a multiple of the one that ends
best: 9.5 in the middle of 39 searches of language models, but 5 for one and 15 for another (`docs/learning-rate.md`).
Short trainings that are annealed to nothing tell those apart: the rate that ends lowest in them is near the one that
does so in the run: lower where the model knows such rows, and higher where it first has to learn their form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BELOW_DIVERGENCE = 9.5
BELOW_DIVERGENCE_NEW_HEAD = 15.0
"""For whole weights under a head that begins as noise."""
COMMON_RATES = {"classification": 5e-4, "image-classification": 1e-3}
"""What adapters under a new head are best trained with on average, by the head. A new head begins as noise, and limits
differ more from seed to seed than best rates do from set to set."""
_LEAST_OF_COMMON = 0.25
"""Share of a common rate below which a limit does not pull it: the loss of a head that is noise may rise by chance."""
TRIALS_OVER_RUN = 0.65
"""The best rate of short trials of few rows over that of a run, for rows whose form the model knows."""
KNOWN_FORM = 1.6
"""The loss before training, in nats a token, up to which that is so. Above it, the first steps learn the form: they
gain from rates that are too high for the rest, by the square root of the loss."""
_WARM_UP = 0.1
"""Share of a trial."""
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
    """What to train with, or to begin trials with.

    Args:
        divergence: the rate at which the loss of a range test rises above its start.
    """
    return divergence / BELOW_DIVERGENCE


def rate_under_new_head(divergence: float | None, common: float | None, lr_ratio: float) -> float | None:
    """What to train with where a part of the model begins as noise: what is common, if it is far enough from the limit.

    Args:
        divergence: see `rate_below`; None where the loss rose at no rate.
        common: of `COMMON_RATES`, for one rate for A and B; None where no adapter is trained.
        lr_ratio: rate of B over that of A.

    Returns:
        The rate of A; None where nothing says it.
    """
    if common is None:
        return None if divergence is None else divergence / BELOW_DIVERGENCE_NEW_HEAD
    rate = common / math.sqrt(lr_ratio)
    return rate if divergence is None else min(rate, max(rate_below(divergence), _LEAST_OF_COMMON * rate))


def rate_of_trials(rates: Sequence[float], ends: Sequence[float], start: float) -> float:
    """What to train with after short trials.

    Args:
        rates: of the trials, rising.
        ends: loss at the end of each, finite.
        start: loss before training.
    """
    return lowest(rates, ends) / (TRIALS_OVER_RUN * math.sqrt(max(1.0, start / KNOWN_FORM)))


def annealed(step: int, steps: int) -> float:
    """Share of the peak rate in a step, counted from 0: a short warm-up, and down to nothing in a straight line."""
    rising = max(1, round(_WARM_UP * steps))
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Where the loss is lowest, by a parabola over the logarithm of the rate through the lowest and its neighbours.

    Args:
        rates: rising.
        losses: finite, one for each.
    """
    best = min(range(len(rates)), key=lambda index: losses[index])
    if best in (0, len(rates) - 1):
        return rates[best]
    low, middle, high = (math.log(rate) for rate in rates[best - 1 : best + 2])
    left, centre, right = losses[best - 1 : best + 2]
    # Of the parabola through three points (Brent's method, parabolic step).
    one, other = (middle - low) * (centre - right), (middle - high) * (centre - left)
    if one == other:
        return rates[best]
    return math.exp(middle - 0.5 * ((middle - low) * one - (middle - high) * other) / (one - other))
