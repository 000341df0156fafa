"""Ranks from importances (paper, section 3.2): a shared budget, in proportion to advantage or tempered."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, int]
Allocation = Literal["proportional", "equal", "sqrt", "softmax"]
_NEARLY_HALF = 1e-9
"""So much below a half is a half: gradients of another size change the last digits of a share, and no rank."""
_EQUAL = 1e-9
"""Shares that differ by less, relatively, differ by rounding: a softmax would tell them apart as any others."""


@dataclass(frozen=True)
class Rule:
    """How importances become shares of the budget.

    Attributes:
        allocation: `proportional` to the importance, as in the paper; `equal` ranks; in proportion to its root
            (`sqrt`); or `softmax` of the importances between 0 for the least and 1 for the greatest.
        temperature: T of the softmax, which gives the most important layer e^(1/T) times what the least gets.
    """

    allocation: Allocation = "proportional"
    temperature: float = 0.5


PAPER = Rule()


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
    rule: Rule = PAPER,
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
        rule: what takes the place of a_l, if not the paper's.

    Raises:
        ValueError: see `advantages`.
    """
    wanted = unclipped_ranks(shares_of(importances, shapes, rule, sizes), shapes, reference_rank, sizes)
    return [bounds.clip(rank, shape) for rank, shape in zip(wanted, shapes, strict=True)]


def shares_of(
    importances: Sequence[float], shapes: Sequence[Shape], rule: Rule = PAPER, sizes: Sequence[int] = ()
) -> list[float]:
    """Share of each layer in the budget, of a group that of all its members.

    Args:
        importances, shapes, sizes: see `allocate`.
        rule: how shares follow from importances.

    Raises:
        ValueError: see `advantages`.
    """
    proportional = advantages(importances)
    if rule.allocation == "proportional":
        return proportional
    if rule.allocation == "equal":
        weights = _costs(shapes, sizes)
    else:
        members = sizes or [1] * len(shapes)
        # What a member of a group is worth is tempered, and the group gets as many times as much.
        each = [share / size for share, size in zip(proportional, members, strict=True)]
        weights = [size * value for size, value in zip(members, _tempered(each, rule), strict=True)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _tempered(shares: Sequence[float], rule: Rule) -> list[float]:
    if rule.allocation == "sqrt":
        return [math.sqrt(share) for share in shares]
    least, spread = min(shares), max(shares) - min(shares)
    if spread <= _EQUAL * max(shares):
        return [1.0] * len(shares)
    # From e^(-1/T) to 1, so that a low temperature does not overflow.
    return [math.exp(((share - least) / spread - 1) / rule.temperature) for share in shares]


def unclipped_ranks(
    shares: Sequence[float], shapes: Sequence[Shape], reference_rank: int, sizes: Sequence[int] = ()
) -> list[int]:
    """The paper's ranks before the bounds: round(b a_l / sqrt(m_l + n_l)), halves up.

    Args:
        shares: a_l, see `shares_of`.
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
    rule: Rule = PAPER,
    aim: int | None = None,
) -> list[int]:
    """As `allocate`, with b chosen so that the trainable parameters come nearest to an aim.

    Clipping and rounding make the count of `allocate` drift from the aim; here b is found by bisection, in which the
    count never falls when b grows. Of layers that would get another rank at the same b, as all do with equal ranks,
    those go first whose importance is greatest for what it costs.

    Args:
        importances, shapes, reference_rank, bounds, sizes, rule: see `allocate`.
        aim: trainable parameters; None is those of LoRA at r_ref.

    Raises:
        ValueError: see `advantages`.
    """
    shares, costs = shares_of(importances, shapes, rule, sizes), _costs(shapes, sizes)
    if aim is None:
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
    members = sizes or [1] * len(shapes)
    worth = [value / (size * sum(shape)) for value, size, shape in zip(importances, members, shapes, strict=True)]
    between = _raised_in_turn(ranks_at(low), ranks_at(high), worth)
    return min(between, key=lambda ranks: abs(parameters(ranks) - aim))


def _raised_in_turn(low: list[int], high: list[int], worth: Sequence[float]) -> Iterator[list[int]]:
    """The lower ranks, then with those raised to the higher that are worth most, and so on; equals go together."""
    yield low
    ranks, order = list(low), sorted(range(len(low)), key=lambda layer: -worth[layer])
    waiting = [layer for layer in order if high[layer] != low[layer]]
    while waiting:
        most = worth[waiting[0]]
        together = [layer for layer in waiting if worth[layer] >= most * (1 - _EQUAL)]
        for layer in together:
            ranks[layer] = high[layer]
        waiting = waiting[len(together) :]
        yield list(ranks)


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
    return math.floor(value + 0.5 + _NEARLY_HALF) if math.isfinite(value) else 2**62
