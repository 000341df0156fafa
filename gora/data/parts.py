"""Parts of a source: what one worker takes at a time, small enough to be held several times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from gora.data.rows import Rows

if TYPE_CHECKING:
    import pyarrow

PART_ROWS = 1000
"""Rows of a part, at most: enough to fill the threads of a tokenizer."""
PART_BYTES = 4 * 2**20
"""A part ends with the row that reaches this size."""
_TABLE_BYTES = 32 * 2**20
"""Bytes of a table's rows that a part may hold; images reach it, texts do not."""


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

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as it is, a slice would bring the whole table along.
        import pyarrow

        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        return _unpickled, (self.name, self.before, sink.getvalue().to_pybytes())

    @property
    def read(self) -> int:
        """How many rows it holds."""
        return int(self.table.num_rows)

    def only(self, column: str) -> TablePart:
        """One column, or all of them if no column has that name."""
        return replace(self, table=self.table.select([column])) if column in self.table.column_names else self

    def parsed(self) -> Rows:
        """The rows, each placed by its number."""
        rows = Rows(self.name, before=self.before)
        for row in self.table.to_pylist():
            rows.keep(row)
        return rows


def _unpickled(name: str, before: int, table: bytes) -> TablePart:
    import pyarrow

    return TablePart(name=name, before=before, table=pyarrow.ipc.open_stream(table).read_all())


def table_parts(tables: Iterable[pyarrow.Table], name: str, max_rows: int | None) -> Iterator[TablePart]:
    """The first rows of some tables, in parts."""
    before = 0
    for table in tables:
        wanted = table.num_rows if max_rows is None else min(table.num_rows, max_rows - before)
        size = min(PART_ROWS, max(1, _TABLE_BYTES * table.num_rows // max(table.nbytes, 1)))
        for start in range(0, wanted, size):
            part = table.slice(start, min(size, wanted - start))
            yield TablePart(name=name, before=before + start, table=part)
        before += wanted
        if before == max_rows:
            return
