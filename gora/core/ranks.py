"""Ranks from importances (paper, section 3.2): a shared budget is handed out in proportion to advantage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, int]


@dataclass(frozen=True)
class RankBounds:
    """Smallest and largest rank of a layer; `largest` None is unbounded (Table 5)."""

    smallest: int
    largest: int | None

    def clip(self, wanted: int, shape: Shape) -> int:
        """Clip to the bounds, and never above the width of the matrix: further directions add nothing."""
        largest = min(shape) if self.largest is None else min(self.largest, *shape)
        return max(min(self.smallest, largest), min(wanted, largest))


def advantages(importances: Sequence[float]) -> list[float]:
    """Share of each layer in the sum of all importances: a_l = I_l / sum_j I_j.

    Raises:
        ValueError: an importance is negative or not finite, or all are zero.
    """
    if any(not math.isfinite(value) or value < 0 for value in importances):
        raise ValueError("importances must be finite and not negative")
    total = math.fsum(importances)
    if total <= 0:
        raise ValueError("every importance is zero: the loss does not depend on any target layer")
    return [value / total for value in importances]


def allocate(
    importances: Sequence[float], shapes: Sequence[Shape], reference_rank: int, bounds: RankBounds
) -> list[int]:
    """Ranks as in the paper: r_l = clip(round(b a_l / sqrt(m_l + n_l)), r_min, r_max), halves up.

    The budget b = sum_l sqrt(m_l + n_l) r_ref is what equal ranks r_ref would use.

    Args:
        importances: I_l of each layer.
        shapes: (m_l, n_l) of each layer, in either order.
        reference_rank: r_ref.
        bounds: r_min and r_max.

    Raises:
        ValueError: see `advantages`.
    """
    wanted = unclipped_ranks(advantages(importances), shapes, reference_rank)
    return [bounds.clip(rank, shape) for rank, shape in zip(wanted, shapes, strict=True)]


def unclipped_ranks(shares: Sequence[float], shapes: Sequence[Shape], reference_rank: int) -> list[int]:
    """The paper's ranks before the bounds: round(b a_l / sqrt(m_l + n_l)), halves up.

    Args:
        shares: a_l, see `advantages`.
        shapes: (m_l, n_l) of each layer, in either order.
        reference_rank: r_ref.
    """
    return _unclipped(_paper_budget(shapes, reference_rank), shares, shapes)


def allocate_parameters(
    importances: Sequence[float], shapes: Sequence[Shape], reference_rank: int, bounds: RankBounds
) -> list[int]:
    """As `allocate`, with b chosen so that the trainable parameters come nearest to LoRA's at r_ref.

    Clipping and rounding make the count of `allocate` drift from the aim; here b is found by bisection, in which the
    count never falls when b grows.

    Raises:
        ValueError: see `advantages`.
    """
    shares = advantages(importances)
    aim = adapter_parameters(shapes, [reference_rank] * len(shapes))
    low = 0.0
    high = _paper_budget(shapes, reference_rank)
    largest = _allocate(math.inf, shares, shapes, bounds)
    while adapter_parameters(shapes, ranks := _allocate(high, shares, shapes, bounds)) < aim and ranks != largest:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if adapter_parameters(shapes, _allocate(middle, shares, shapes, bounds)) < aim:
            low = middle
        else:
            high = middle
    candidates = (_allocate(low, shares, shapes, bounds), _allocate(high, shares, shapes, bounds))
    return min(candidates, key=lambda ranks: abs(adapter_parameters(shapes, ranks) - aim))


def adapter_parameters(shapes: Sequence[Shape], ranks: Sequence[int]) -> int:
    """Number of entries in A and B over all layers: sum_l r_l (m_l + n_l)."""
    return sum(rank * sum(shape) for shape, rank in zip(shapes, ranks, strict=True))


def _paper_budget(shapes: Sequence[Shape], reference_rank: int) -> float:
    """b = sum_l sqrt(m_l + n_l) r_ref."""
    return math.fsum(math.sqrt(sum(shape)) * reference_rank for shape in shapes)


def _allocate(budget: float, shares: Sequence[float], shapes: Sequence[Shape], bounds: RankBounds) -> list[int]:
    wanted = _unclipped(budget, shares, shapes)
    return [bounds.clip(rank, shape) for rank, shape in zip(wanted, shapes, strict=True)]


def _unclipped(budget: float, shares: Sequence[float], shapes: Sequence[Shape]) -> list[int]:
    return [
        _round_half_up(budget * share / math.sqrt(sum(shape)) if share > 0 else 0.0)
        for share, shape in zip(shares, shapes, strict=True)
    ]


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5) if math.isfinite(value) else 2**62
