"""Which rows an optimizer step is made of, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from gora.data import Examples, epoch_order


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
        return self._rows, self._order[1][place * self._batch_size : (place + 1) * self._batch_size]


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
