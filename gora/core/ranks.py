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
    importances: Sequence[float],
    shapes: Sequence[Shape],
    reference_rank: int,
    bounds: RankBounds,
    sizes: Sequence[int] = (),
) -> list[int]:
    """Ranks as in the paper: r_l = clip(round(b a_l / sqrt(m_l + n_l)), r_min, r_max), halves up.

    The budget b = sum_l sqrt(m_l + n_l) r_ref is what equal ranks r_ref would use. A group of k matrices of one shape
    that share a rank costs k times as much as one of them: with k as its size it gets b a_l / (k sqrt(m_l + n_l)).

    Args:
        importances: I_l of each layer; of a group, the sum over its members.
        shapes: (m_l, n_l) of each layer, in either order.
        reference_rank: r_ref.
        bounds: r_min and r_max.
        sizes: how many matrices share each rank; empty where every layer has one.

    Raises:
        ValueError: see `advantages`.
    """
    wanted = unclipped_ranks(advantages(importances), shapes, reference_rank, sizes)
    return [bounds.clip(rank, shape) for rank, shape in zip(wanted, shapes, strict=True)]


def unclipped_ranks(
    shares: Sequence[float], shapes: Sequence[Shape], reference_rank: int, sizes: Sequence[int] = ()
) -> list[int]:
    """The paper's ranks before the bounds: round(b a_l / sqrt(m_l + n_l)), halves up.

    Args:
        shares: a_l, see `advantages`.
        shapes: (m_l, n_l) of each layer, in either order.
        reference_rank: r_ref.
        sizes: see `allocate`.
    """
    costs = _costs(shapes, sizes)
    return _unclipped(_paper_budget(costs, reference_rank), shares, costs)


def allocate_parameters(
    importances: Sequence[float],
    shapes: Sequence[Shape],
    reference_rank: int,
    bounds: RankBounds,
    sizes: Sequence[int] = (),
) -> list[int]:
    """As `allocate`, with b chosen so that the trainable parameters come nearest to LoRA's at r_ref.

    Clipping and rounding make the count of `allocate` drift from the aim; here b is found by bisection, in which the
    count never falls when b grows.

    Raises:
        ValueError: see `advantages`.
    """
    shares, costs = advantages(importances), _costs(shapes, sizes)
    aim = adapter_parameters(shapes, [reference_rank] * len(shapes), sizes)

    def ranks_at(budget: float) -> list[int]:
        wanted = _unclipped(budget, shares, costs)
        return [bounds.clip(rank, shape) for rank, shape in zip(wanted, shapes, strict=True)]

    def parameters(ranks: Sequence[int]) -> int:
        return adapter_parameters(shapes, ranks, sizes)

    low = 0.0
    high = _paper_budget(costs, reference_rank)
    largest = ranks_at(math.inf)
    while parameters(ranks := ranks_at(high)) < aim and ranks != largest:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if parameters(ranks_at(middle)) < aim:
            low = middle
        else:
            high = middle
    return min((ranks_at(low), ranks_at(high)), key=lambda ranks: abs(parameters(ranks) - aim))


def adapter_parameters(shapes: Sequence[Shape], ranks: Sequence[int], sizes: Sequence[int] = ()) -> int:
    """Number of entries in A and B over all layers: sum_l r_l (m_l + n_l), as often as a group has members."""
    sizes = sizes or [1] * len(shapes)
    return sum(size * rank * sum(shape) for shape, rank, size in zip(shapes, ranks, sizes, strict=True))


def _costs(shapes: Sequence[Shape], sizes: Sequence[int]) -> list[float]:
    """What a rank of each layer takes from the budget: sqrt(m_l + n_l), as often as a group has members."""
    sizes = sizes or [1] * len(shapes)
    return [size * math.sqrt(sum(shape)) for shape, size in zip(shapes, sizes, strict=True)]


def _paper_budget(costs: Sequence[float], reference_rank: int) -> float:
    """b = sum_l sqrt(m_l + n_l) r_ref."""
    return math.fsum(cost * reference_rank for cost in costs)


def _unclipped(budget: float, shares: Sequence[float], costs: Sequence[float]) -> list[int]:
    return [
        _round_half_up(budget * share / cost if share > 0 else 0.0) for share, cost in zip(shares, costs, strict=True)
    ]


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5) if math.isfinite(value) else 2**62
