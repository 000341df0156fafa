"""Rows of a CSV or Parquet file."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gora.data.file_bytes import open_content
from gora.data.messages import quoted
from gora.data.parts import PART_ROWS, TablePart, table_parts
from gora.data.rows import Rows
from gora.errors import InputError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_MOST_ROWS, _BATCH_BYTES = 2**16, 2**28
"""Rows and bytes of a Parquet file that are read at a time."""


def csv_parts(path: Path, name: str, max_rows: int | None, separator: str = ",") -> Iterator[Rows]:
    """Read a CSV file with a header row; every value is text. A row is placed by the line on which it starts.

    Args:
        path: the file.
        name: what messages call it.
        max_rows: read this many rows only, good or bad; None reads all.
        separator: the character between two values.

    Raises:
        InputError: the file as a whole cannot be read, its header is no list of distinct names, or a quote is
            never closed.
    """
    # Undecodable bytes become lone surrogates first, so that they spoil their own row and not the whole file.
    with (
        open_content(path, name) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        reader = csv.reader(text, strict=True, delimiter=separator)
        header = _header(reader, name)
        part, read = Rows(name, typed=False), 0
        while read + part.read != max_rows:
            place = f"{name}:{reader.line_num + 1}"
            try:
                with _fields_of_any_size():
                    record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                _refuse_open_quote(error, place)
                part.refuse(f"not CSV: {error}", place)
            else:
                _add(part, header, record, place)
            if part.read == PART_ROWS:
                yield part
                part, read = Rows(name, typed=False), read + part.read
        if part.read:
            yield part


def parquet_parts(path: Path, name: str, max_rows: int | None) -> Iterator[TablePart]:
    """Read a Parquet file.

    Raises:
        InputError: the file is no Parquet file or is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_names_that_repeat(file.schema_arrow.names, name)
            yield from table_parts(map(_table, file.iter_batches(_rows_at_a_time(file))), name, max_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name} cannot be read as Parquet: {str(error).rstrip('.')}.") from error


def _rows_at_a_time(file: "pyarrow.parquet.ParquetFile") -> int:
    """Fewer where rows are large, as images are: a batch is held as a whole."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(largest, 1))))


def _table(batch: "pyarrow.RecordBatch") -> "pyarrow.Table":
    import pyarrow

    return pyarrow.Table.from_batches([batch])


def _add(rows: Rows, header: list[str], record: list[str], place: str) -> None:
    if not record:  # a blank line
        return
    if len(record) != len(header):
        rows.refuse(f"{len(record)} values where the header names {len(header)} columns", place)
    elif not "".join(record).isascii() and _undecodable(record):
        rows.refuse("not UTF-8", place)
    else:
        rows.keep(dict(zip(header, record, strict=True)), place)


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        with _fields_of_any_size():
            header = next((record for record in reader if record), [])
    except csv.Error as error:
        raise InputError(f"{name}: the header row is not CSV: {error}.") from error
    if not header:
        raise InputError(f"{name} is empty.")
    if not all(header) or len(set(header)) < len(header):
        raise InputError(f"{name}: the header row must name every column once; it has {quoted(header)}.")
    _refuse_another_separator(header, name)
    return header


def _refuse_another_separator(header: list[str], name: str) -> None:
    """A single column whose name is a list of names: spreadsheets write semicolons where the comma is in numbers."""
    if len(header) > 1:
        return
    save = "Save the file with commas as .csv, or with tabs as .tsv."
    marks = {
        ";": ("semicolons", save),
        "|": ("bars", save),
        "\t": ("tabs", "Give it a name that ends in .tsv."),
        ",": ("commas", "Give it a name that ends in .csv."),
    }
    for mark, (said, advice) in marks.items():
        if mark in header[0] and all(map(str.strip, header[0].split(mark))):
            raise InputError(
                f"{name}: the header row is one column, {header[0]!r}, as if values were separated by {said}. {advice}"
            )


def _refuse_names_that_repeat(columns: list[str], name: str) -> None:
    if repeated := [column for column, count in Counter(columns).items() if count > 1]:
        raise InputError(f"{name} has several columns of one name: {quoted(repeated)}. Give each a name of its own.")


def _undecodable(record: list[str]) -> bool:
    try:
        "".join(record).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _refuse_open_quote(error: csv.Error, place: str) -> None:
    """An unclosed quote swallows every row after it, so it is a fault of the file and not of one row."""
    if "unexpected end of data" in str(error):
        raise InputError(f"{place}: a quote that opens in this row is never closed.") from error


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB a field, which long documents exceed."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
