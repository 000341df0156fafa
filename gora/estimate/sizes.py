"""Which micro-batches there are to choose from, and the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gora.estimate.memory import Memory


def largest_that_fits(sizes: Sequence[int], memory_of: Callable[[int], Memory], limit: int) -> int | None:
    """The largest micro-batch whose peak is within the limit, or None.

    Args:
        sizes: rows to choose from.
        memory_of: the estimate for so many rows.
        limit: bytes of the device that may be used.
    """
    return max((size for size in sizes if memory_of(size).total <= limit), default=None)


def divisors(number: int) -> list[int]:
    """All whole numbers that divide it, in order."""
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def next_smaller(size: int) -> int | None:
    """The largest divisor of a micro-batch that is at most half of it; None for one row."""
    return max((each for each in divisors(size) if each <= size // 2), default=None)
