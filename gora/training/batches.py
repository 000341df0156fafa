"""Which rows each process trains on, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, Sampler

from gora.data.encode import IGNORED
from gora.data.examples import Examples


class DealtBatches(Sampler[list[int]]):
    """The micro-batches of one process: those of an epoch are dealt out in turn, so that every optimizer step has the
    rows that it has in one process.

    Where the rows end, the last of them may be fewer, and a process may have none: it gets the index after the last
    row, so that all processes make the same number of passes.

    Args:
        rows: how many there are.
        size: rows of a micro-batch.
        index: which process this is.
        processes: how many there are.
        seed: of the order, which is another one in each epoch.
    """

    def __init__(self, rows: int, size: int, index: int, processes: int, seed: int) -> None:
        self._rows, self._size, self._index, self._processes, self._seed = rows, size, index, processes, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._rows / (self._size * self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator).tolist()
        for turn in range(len(self)):
            first = (turn * self._processes + self._index) * self._size
            yield order[first : first + self._size] or [self._rows]


class WithFiller(Dataset[dict[str, list[int]]]):
    """Rows and, at the index after the last, the shortest of them without labels: nothing is learnt from it.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Examples) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if index < len(self._rows):
            return self._rows[index]
        filler = self._rows[min(range(len(self._rows)), key=self._rows.lengths.__getitem__)]
        return {**filler, "labels": [IGNORED] * len(filler["labels"])}
