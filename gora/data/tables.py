"""Rows of a CSV or Parquet file."""

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gora.data.file_bytes import read_content
from gora.data.messages import quoted
from gora.data.rows import Rows
from gora.errors import InputError


def read_csv(path: Path, name: str, max_rows: int | None, separator: str = ",") -> Rows:
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
    text = read_content(path, name).decode("utf-8-sig", errors="surrogateescape")
    rows = Rows(name, typed=False)
    with _fields_of_any_size():
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        header = _header(reader, name)
        while rows.read != max_rows:
            place = f"{name}:{reader.line_num + 1}"
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                _refuse_open_quote(error, place)
                rows.refuse(f"not CSV: {error}", place)
                continue
            _add(rows, header, record, place)
    return rows


def read_parquet(path: Path, name: str, max_rows: int | None) -> Rows:
    """Read a Parquet file.

    Raises:
        InputError: the file is no Parquet file or is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    rows = Rows(name)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.slice(0, None if max_rows is None else max_rows - rows.read).to_pylist():
                    rows.keep(row)
                if rows.read == max_rows:
                    break
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name} cannot be read as Parquet: {error}.") from error
    return rows


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
        header = next((record for record in reader if record), [])
    except csv.Error as error:
        raise InputError(f"{name}: the header row is not CSV: {error}.") from error
    if not header:
        raise InputError(f"{name} is empty.")
    if not all(header) or len(set(header)) < len(header):
        raise InputError(f"{name}: the header row must name every column once; it has {quoted(header)}.")
    return header


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
