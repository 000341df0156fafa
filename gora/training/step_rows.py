"""Which rows an optimizer step is made of, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from gora.data import Examples, PreparedData, epoch_order
from gora.data.stream import Stream
from gora.errors import InputError
from gora.files import read_json

STREAM = "stream.json"
"""In a checkpoint of a run on a stream: where in the stream it is."""


class RunSteps(Protocol):
    """The rows of every optimizer step of a run, the same in every process and after every resume.

    Attributes:
        per_epoch: steps of an epoch.
    """

    per_epoch: int

    def rows(self, step: int) -> tuple[Examples, list[int]]:
        """Examples, and the indices of those that a step is made of, over all processes.

        Args:
            step: counted from 1.
        """

    def remarks(self) -> list[str]:
        """What is to be said of rows that were met since this was asked last."""

    def state(self, step: int) -> dict[str, Any] | None:
        """What a run that is resumed after this step needs, as JSON; None is nothing."""


class KeptSteps:
    """Steps over rows that are all there: each epoch has its own order, and its last step may be smaller.

    Args:
        rows: what is trained on.
        batch_size: rows of a step over all processes.
        seed: of the order.
    """

    def __init__(self, rows: Examples, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._order: tuple[int, list[int]] | None = None
        self.per_epoch = math.ceil(rows.per_epoch / batch_size)

    def rows(self, step: int) -> tuple[Examples, list[int]]:
        """See `RunSteps`."""
        epoch, place = divmod(step - 1, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self._rows, self._seed, epoch)
        return self._rows.in_epoch(epoch), self._order[1][place * self._batch_size : (place + 1) * self._batch_size]

    def remarks(self) -> list[str]:
        """None: all rows are known."""
        return []

    def state(self, step: int) -> None:
        """Nothing: the number of the step says all."""


class StreamSteps:
    """Steps over a stream, which has one epoch: that of the whole run.

    Args:
        stream: what is trained on; the size of its blocks is a multiple of `batch_size`.
        batch_size: rows of a step over all processes.
        steps: of the run.
    """

    def __init__(self, stream: Stream, batch_size: int, steps: int) -> None:
        self._stream, self._batch_size, self.per_epoch = stream, batch_size, steps

    def rows(self, step: int) -> tuple[Examples, list[int]]:
        """See `RunSteps`; the next block is begun when the first rows of one are asked for."""
        block, place = divmod((step - 1) * self._batch_size, self._stream.block_size)
        examples = self._stream.block(block).examples
        if self._block_of(self.per_epoch) > block:
            self._stream.make_ahead(block + 1)
        return examples, list(range(place, place + self._batch_size))

    def remarks(self) -> list[str]:
        """Rows that were left out."""
        return self._stream.take_remarks()

    def state(self, step: int) -> dict[str, Any]:
        """The block of the step, and where it begins."""
        return self._stream.state(self._block_of(step))

    def _block_of(self, step: int) -> int:
        return (step - 1) * self._batch_size // self._stream.block_size


def resume_stream(data: PreparedData, checkpoint: Path) -> None:
    """Begin a stream where the run of a checkpoint was; raises InputError where the checkpoint does not say it."""
    if data.stream is None:
        return
    path = checkpoint / STREAM
    try:
        data.stream.resume(read_json(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say where in the stream the run was: {error}") from None


def steps_of(data: PreparedData, batch_size: int, seed: int, steps: int) -> RunSteps:
    """The steps of a run.

    Args:
        data: what it trains on.
        batch_size: rows of a step over all processes.
        seed: of the order.
        steps: how many there are.
    """
    return StreamSteps(data.stream, batch_size, steps) if data.stream else KeptSteps(data.train, batch_size, seed)


def name_rows(places: Sequence[str], most: int | None = None) -> str:
    """`train.jsonl:812, 813; other.jsonl:4`: places such as `train.jsonl:812`, each file named once.

    Args:
        places: where the rows came from.
        most: name this many only, and count the rest.
    """
    shown = sorted(map(_split, places))[:most]
    files = [
        f"{file}:{', '.join(rest for _, _, rest in group)}" if file else ", ".join(rest for _, _, rest in group)
        for file, group in groupby(shown, key=lambda place: place[0])
    ]
    more = len(places) - len(shown)
    return "; ".join(files) + (f" and {more:,} more" if more else "")


def _split(place: str) -> tuple[str, int, str]:
    """The file, the line as a number, and all that follows the file; a place of another kind has no file."""
    file, colon, rest = place.rpartition(":")
    number = rest.split(" ")[0]
    return (file, int(number), rest) if colon and number.isdecimal() else ("", 0, place)
