"""How much of each source comes in an epoch, and which of its rows.

The rows of a source are drawn from one endless sequence: all of them in random order, then all of them in another one,
and so on. An epoch takes up where the last one ended, so that no row comes a second time before all have come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_LARGE_PRIME = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a source has of an epoch.

    Attributes:
        name: what messages call the source.
        rows: how many examples there are of it.
        drawn: how many of them come in an epoch; more than there are repeats them.
    """

    name: str
    rows: int
    drawn: int

    @classmethod
    def of(cls, name: str, rows: int, *, weight: float | None, count: int | None) -> Share:
        """The share that a recipe gives a source: `count` examples, or `weight` times all; at least one."""
        drawn = count if count is not None else round(rows * (1.0 if weight is None else weight))
        return cls(name=name, rows=rows, drawn=max(1, drawn))


class Mixture:
    """Rows of several sources, which lie one after the other.

    Args:
        shares: what each source has of an epoch, in their order.
        seed: draws rows where not all come.
    """

    def __init__(self, shares: Sequence[Share], seed: int) -> None:
        self.shares, self._seed = tuple(shares), seed

    @property
    def per_epoch(self) -> int:
        """Examples in an epoch."""
        return sum(share.drawn for share in self.shares)

    def members(self, epoch: int) -> np.ndarray:
        """Indices of the examples of an epoch, source by source (int64)."""
        found, first = [], 0
        for number, share in enumerate(self.shares):
            found.append(first + self._drawn(number, share, epoch))
            first += share.rows
        return np.concatenate(found)

    def _drawn(self, number: int, share: Share, epoch: int) -> np.ndarray:
        if share.drawn == share.rows:
            return np.arange(share.rows)
        start = epoch * share.drawn
        passes = range(start // share.rows, (start + share.drawn - 1) // share.rows + 1)
        orders = [self._order(number, share.rows, each) for each in passes]
        skipped = start - passes[0] * share.rows
        return np.concatenate(orders)[skipped : skipped + share.drawn]

    def _order(self, number: int, rows: int, which: int) -> np.ndarray:
        """The rows of a source in the order of one pass over it."""
        seed = ((self._seed * _LARGE_PRIME + number) * _LARGE_PRIME + which) % 2**63
        order: np.ndarray = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
        return order

    def summary(self) -> str:
        """`4,500 rows per epoch: a.jsonl 4,000 (of 2,000), b.jsonl 500`."""
        shares = ", ".join(
            f"{share.name} {share.drawn:,}" + (f" (of {share.rows:,})" if share.drawn != share.rows else "")
            for share in self.shares
        )
        return f"{self.per_epoch:,} rows per epoch: {shares}"
