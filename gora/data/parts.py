"""Parts of a source: what one worker takes at a time, small enough to be held several times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gora.data.rows import Rows

if TYPE_CHECKING:
    import pyarrow

PART_ROWS = 1000
"""Rows of a part, at most: enough to fill the threads of a tokenizer."""
PART_BYTES = 4 * 2**20
"""A part ends with the row that reaches this size."""


class Part(Protocol):
    """Neighbouring rows of one file, in its order.

    Attributes:
        name: what messages call the file.
    """

    @property
    def name(self) -> str: ...

    @property
    def read(self) -> int:
        """How many rows it holds, good or bad."""

    def parsed(self) -> Rows:
        """The rows."""


@dataclass(frozen=True, kw_only=True)
class TablePart:
    """Rows of an Arrow table.

    Attributes:
        name: what messages call the file or the data set.
        before: rows of it that come before these.
        table: the rows.
    """

    name: str
    before: int
    table: pyarrow.Table

    @property
    def read(self) -> int:
        """How many rows it holds."""
        return int(self.table.num_rows)

    def parsed(self) -> Rows:
        """The rows, each placed by its number."""
        rows = Rows(self.name, before=self.before)
        for row in self.table.to_pylist():
            rows.keep(row)
        return rows


def table_parts(tables: Iterable[pyarrow.Table], name: str, max_rows: int | None) -> Iterator[TablePart]:
    """The first rows of some tables, in parts."""
    before = 0
    for table in tables:
        wanted = table.num_rows if max_rows is None else min(table.num_rows, max_rows - before)
        for start in range(0, wanted, PART_ROWS):
            part = table.slice(start, min(PART_ROWS, wanted - start))
            yield TablePart(name=name, before=before + start, table=part)
        before += wanted
        if before == max_rows:
            return
