"""Rows as they were read: the good ones, where each came from, and the ones that could not be used."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


class Unusable(ValueError):
    """A row cannot be used; the message is the reason, without the row's place."""


class Untrained(Exception):
    """A row is as it should be, but holds nothing of what the recipe trains."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        where: its place, as in `train.jsonl:17`.
        reason: what is wrong with it.
        position: how many rows, good or bad, come before it in its source.
    """

    where: str
    reason: str
    position: int

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass
class Rows:
    """The rows of one source, in its order.

    Attributes:
        name: the source, as messages call it: `train.jsonl`, `org/name[train]`.
        rows: column name to value, for every row that could be read.
        bad: the rows that could not be read.
        typed: whether values have types of their own; in a CSV file every value is text.
        before: rows of the same file that came before these, where these are a part of it.
    """

    name: str
    typed: bool = True
    before: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    _places: list[str] = field(default_factory=list, repr=False)
    _parts: list[tuple[str, int]] = field(default_factory=list, repr=False)
    _positions: list[int] = field(default_factory=list, repr=False)

    @property
    def read(self) -> int:
        """How many rows were met, the unreadable ones included."""
        return len(self.rows) + len(self.bad)

    def keep(self, row: dict[str, Any], place: str | None = None) -> None:
        """Add a row that was read; its place is `<name> row <n>`, counted from 1, unless a better one is known."""
        self._places.append(place or self._next_place())
        self._positions.append(self.read)
        self.rows.append(row)

    def refuse(self, reason: str, place: str | None = None) -> None:
        """Add a row that could not be read."""
        self.bad.append(BadRow(place or self._next_place(), reason, self.read))

    def where(self, index: int) -> str:
        """Where row `index` of `rows` came from: `train.jsonl:17`, `x.parquet row 17`, `org/name[train] row 17`."""
        return self._places[index]

    def unusable(self, index: int, reason: str) -> BadRow:
        """Row `index` of `rows` as a bad row: it could be read, but nothing can be made of it."""
        return BadRow(self._places[index], reason, self._positions[index])

    def parsed(self) -> "Rows":
        """These rows: as a part of a source, they have been parsed already."""
        return self

    def positions(self) -> list[int]:
        """How many rows, good or bad, come before each of `rows`."""
        return self._positions

    def extend(self, part: "Rows") -> None:
        """Add rows that follow, of the same file or of another one; each keeps its place."""
        start = self.read
        if not self._parts or self._parts[-1][0] != part.name:
            self._parts.append((part.name, start))
        self.typed = self.typed and part.typed
        self.rows += part.rows
        self._places += part._places
        self._positions += [start + position for position in part._positions]
        self.bad += [BadRow(row.where, row.reason, start + row.position) for row in part.bad]

    def shares(self, positions: Iterable[int]) -> list[tuple[str, int, int]]:
        """How many of some rows are in each file: its name, their number, and the number of all its rows.

        Args:
            positions: how many rows of the source come before each of them.
        """
        parts = self._parts or [(self.name, 0)]
        starts = [start for _, start in parts]
        counts = Counter(bisect_right(starts, position) - 1 for position in positions)
        ends = [*starts[1:], self.read]
        return [
            (name, counts[index], end - start)
            for index, ((name, start), end) in enumerate(zip(parts, ends, strict=True))
            if counts[index]
        ]

    def columns(self) -> list[str]:
        """Every column that some row has, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def _next_place(self) -> str:
        return f"{self.name} row {self.before + self.read + 1}"
