"""Examples in an Arrow file, which every process maps into its memory: the pages of one host are shared.

It is a stream of record batches, as `datasets.Dataset.from_file` reads them. A column that is a list is one array of
values and one of offsets for each batch, so that an example is a slice of both.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_64

from gora.data.encode import IGNORED, Encoded

_IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {
        "input_ids": _IDS,
        "labels": _IDS,
        "token_type_ids": _IDS,
        "truncated": pa.bool_(),
        "supervised": pa.int32(),
        "largest": pa.int32(),
        "row": pa.int64(),
        "place": pa.string(),
    }
)
"""`labels`, `truncated` and `token_type_ids` as in `Encoded`; `supervised` labels that are trained on; the `largest` id
of the inputs; the number of its `row` among those of the source; its `place`, as in `train.jsonl:17`."""
_IMAGE_COLUMNS = {"file": pa.string(), "data": pa.binary()}
IMAGE_SCHEMA = pa.schema([*SCHEMA, *_IMAGE_COLUMNS.items()])
"""The same of images, with the `file` where an image lies, or its `data`: the bytes of such a file."""


def batch_of(
    encoded: Sequence[Encoded], rows: Sequence[int], places: Sequence[str], schema: pa.Schema = SCHEMA
) -> pa.RecordBatch:
    """Some examples, the rows they are of, and their places; `IMAGE_SCHEMA` is for those of images."""
    ids = [np.frombuffer(one.input_ids, np.int32) for one in encoded]
    labels = [np.frombuffer(one.labels, np.int32) for one in encoded]
    types = [np.frombuffer(one.token_types, np.int32) for one in encoded if one.token_types is not None]
    columns = [
        _lists(ids),
        _lists(labels),
        _lists(types) if len(types) == len(ids) else pa.nulls(len(ids), _IDS),
        pa.array([one.truncated for one in encoded], pa.bool_()),
        pa.array([np.count_nonzero(each != IGNORED) for each in labels], pa.int32()),
        pa.array([each.max(initial=-1) for each in ids], pa.int32()),
        pa.array(rows, pa.int64()),
        pa.array(places, pa.string()),
    ]
    if schema is IMAGE_SCHEMA:
        columns += [pa.array([getattr(one, name) for one in encoded], kind) for name, kind in _IMAGE_COLUMNS.items()]
    return pa.record_batch(columns, schema=schema)


class Writer:
    """Writes batches into a file.

    Args:
        file: the file, open for writing.
        schema: that of the batches.
    """

    def __init__(self, file: IO[bytes], schema: pa.Schema = SCHEMA) -> None:
        self._sink = _Checked(file)
        self._stream = pa.ipc.new_stream(pa.PythonFile(self._sink, mode="w"), schema)
        self._fingerprint = hashlib.sha256()
        self.examples = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Write some more examples."""
        self._stream.write_batch(batch)
        self.examples += batch.num_rows
        add_to_fingerprint(self._fingerprint, Batch.of(batch), range(batch.num_rows))

    def close(self) -> tuple[str, str]:
        """Close the stream; the fingerprint of the examples, and a checksum of the file."""
        self._stream.close()
        return self._fingerprint.hexdigest(), self._sink.checksum.hexdigest()


def file_checksum(path: Path) -> str:
    """The checksum of a file that `Writer` wrote; raises OSError."""
    checksum = xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(2**22):
            checksum.update(chunk)
    return checksum.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Views of a record batch's memory.

    Attributes:
        ids, labels: the values of all examples, one after the other (int32).
        types: values of `token_type_ids`, None without.
        id_ends, label_ends: where each example ends and the next one begins, from the start of the first (int32,
            one more than there are examples).
    """

    ids: np.ndarray
    labels: np.ndarray
    types: np.ndarray | None
    id_ends: np.ndarray
    label_ends: np.ndarray

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Batch:
        """Views of a batch that is as `batch_of` makes it."""
        ids, labels, types = (batch.column(name) for name in ("input_ids", "labels", "token_type_ids"))
        return cls(
            ids.values.to_numpy(),
            labels.values.to_numpy(),
            None if types.null_count else types.values.to_numpy(),
            ids.offsets.to_numpy(),
            labels.offsets.to_numpy(),
        )

    def parts(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Ids, labels and token types of one example."""
        span = slice(self.id_ends[index], self.id_ends[index + 1])
        labels = self.labels[self.label_ends[index] : self.label_ends[index + 1]]
        return self.ids[span], labels, None if self.types is None else self.types[span]


class Store:
    """Examples in their order.

    Args:
        table: record batches as `batch_of` makes them.
        paths: the files that are mapped; none where they are in memory.
        parts: examples of each source, where there are several; one after the other.
    """

    def __init__(self, table: pa.Table, paths: Sequence[Path] = (), parts: Sequence[int] = ()) -> None:
        self._table, self._paths = table, tuple(paths)
        self.parts = tuple(parts) or (int(table.num_rows),)
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        self._batches = [Batch.of(batch) for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()

    @classmethod
    def mapped(cls, *paths: Path) -> Store:
        """The examples of some files, one after the other; raises OSError or pyarrow's errors."""
        tables = []
        for path in paths:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
                tables.append(stream.read_all())
        return cls(pa.concat_tables(tables), paths, [table.num_rows for table in tables])

    @classmethod
    def of(cls, encoded: Sequence[Encoded], places: Sequence[str]) -> Store:
        """Examples that are in memory."""
        return cls(pa.Table.from_batches([batch_of(encoded, range(len(encoded)), places)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is started and not forked maps the file itself.
        return (Store.mapped, self._paths) if self._paths else (Store, (self._table,))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def find(self, index: int) -> tuple[Batch, int]:
        """The batch of an example, and its index there."""
        number = bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]

    def place(self, index: int) -> str:
        """Where an example came from."""
        return str(self._table.column("place")[index].as_py())

    def value(self, name: str, index: int) -> Any:
        """What a column says of an example."""
        return self._table.column(name)[index].as_py()

    def column(self, name: str) -> np.ndarray:
        """A column of numbers or truths."""
        values: np.ndarray = self._table.column(name).to_numpy()
        return values

    @cached_property
    def rows(self) -> np.ndarray:
        """The number of the row that each example is of (int64); those of each source follow those before it."""
        found, start = self.column("row").copy(), 0
        for end in np.cumsum(self.parts):
            found[start:end] += found[start - 1] + 1 if start else 0
            start = end
        return found

    @cached_property
    def id_counts(self) -> np.ndarray:
        """How many input ids each example has (int64)."""
        return self._counts([batch.id_ends for batch in self._batches])

    @cached_property
    def label_counts(self) -> np.ndarray:
        """How many labels each example has (int64)."""
        return self._counts([batch.label_ends for batch in self._batches])

    def _counts(self, ends: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(np.diff(each).astype(np.int64) for each in ends)])


def add_to_fingerprint(digest: Any, batch: Batch, indices: Sequence[int]) -> None:
    """Add what examples of a batch hold to a SHA-256, the same on every machine."""
    for index in indices:
        ids, labels, types = batch.parts(index)
        digest.update(struct.pack("<II", len(ids), len(labels)))
        for values in (ids, labels, types):
            if values is not None:
                digest.update(values.astype("<i4", copy=False))


class _Checked:
    """A file, and a checksum of what is written into it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.checksum = file, xxh3_64()

    def write(self, data: Any) -> int:
        self.checksum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """The file is closed by whoever opened it."""


def _lists(lists: Sequence[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values = np.concatenate([np.empty(0, np.int32), *lists])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
