"""The least loss along one direction, found with few looks at it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

_COARSE, _CLOSE = 8.0, 1.5
_EACH_WAY = 2
_LOOKS_DOWN = 10


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has seen.

    Attributes:
        value: where the loss was least; 0 where nothing beat the base.
        curve: (value, loss) of every look, in order of value; without losses that are not finite.
        below, above: the values beside `value` that were looked at and are no better; infinite where there is none.
    """

    value: float
    curve: tuple[tuple[float, float], ...]
    below: float
    above: float

    @property
    def base(self) -> float:
        """Loss at 0."""
        return self.curve[0][1]

    @property
    def least(self) -> float:
        """Loss at `value`."""
        return dict(self.curve)[self.value]


def least_along(loss_at: Callable[[float], float], first: float, *, most: int = 15) -> Found:
    """Search the positive numbers for the least loss, with 0 as the value to beat.

    First in factors of 8, two each way: the loss may have more than one valley. Further down where none of them beats
    0; further up while the greatest is the best. Then between the best and its neighbours, until they are within a
    factor of 1.5 of each other.

    Args:
        loss_at: the loss at a value; NaN or infinity counts as worse than any number.
        first: the value to begin with.
        most: how often to look at most, 0 included; at least 6.

    Raises:
        ValueError: the loss at 0 is not finite.
    """
    seen = {0.0: loss_at(0.0)}
    if not math.isfinite(seen[0.0]):
        raise ValueError(f"the loss without a step is {seen[0.0]}")

    def look(value: float) -> float:
        found = loss_at(value)
        seen[value] = found if math.isfinite(found) else math.inf
        return seen[value]

    for power in range(-_EACH_WAY, _EACH_WAY + 1):
        look(first * _COARSE**power)
    while min(seen.values()) == seen[0.0] and len(seen) < min(_LOOKS_DOWN, most):
        look(min(value for value in seen if value) / _COARSE)
    best = min(seen, key=lambda value: (seen[value], value))
    while best and len(seen) < most and (value := _next(seen, best)) is not None:
        if look(value) < seen[best]:
            best = value
    below, above = _beside(seen, best)
    curve = tuple((value, loss) for value, loss in sorted(seen.items()) if math.isfinite(loss))
    return Found(value=best, curve=curve, below=below, above=above)


def _next(seen: dict[float, float], best: float) -> float | None:
    """Where to look next: beyond the best value, or half-way into the wider of the gaps beside it."""
    below, above = _beside(seen, best)
    if math.isinf(above):
        return best * _COARSE
    if not below:
        return best / _COARSE
    if above / below <= _CLOSE:
        return None
    return math.sqrt(best * above) if above / best >= best / below else math.sqrt(below * best)


def _beside(seen: dict[float, float], best: float) -> tuple[float, float]:
    return (
        max((value for value in seen if value < best), default=0.0),
        min((value for value in seen if value > best), default=math.inf),
    )
