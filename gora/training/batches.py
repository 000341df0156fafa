"""Which rows each process trains on, and when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, Sampler

from gora.data import Collator, LabelCollator
from gora.data.collate import tokens_in
from gora.data.encode import IGNORED
from gora.data.examples import Examples
from gora.training.layout import StepLayout
from gora.training.rows_checksum import rows_checksum
from gora.training.step_rows import epoch_order

Row = dict[str, list[int]]


class Steps(Sampler[list[list[int]]]):
    """The micro-batches of one process, step by step: a step has the same rows with any layout and any processes.

    A process that has no rows in a turn gets the index after the last row, so that all make the same number of passes.

    Args:
        rows: what to train on.
        batch_size: rows of a step, over all processes; the last of an epoch may have fewer.
        layout: deals out the rows of a step.
        index: which process this is.
        seed: of the order, which is another one in each epoch.
    """

    def __init__(self, rows: Examples, batch_size: int, layout: StepLayout, index: int, seed: int) -> None:
        self._rows, self._batch_size, self._layout, self._index, self._seed = rows, batch_size, layout, index, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[list[list[int]]]:
        order = epoch_order(len(self._rows), self._seed, self._epoch)
        for start in range(0, len(order), self._batch_size):
            turns = self._layout(order[start : start + self._batch_size], self._rows.lengths.__getitem__)
            yield [turn[self._index] or [len(self._rows)] for turn in turns]


class MicroBatchRows(Dataset[list[Row]]):
    """The rows of a micro-batch by their indices; at the index after the last, the shortest without labels: nothing is
    learnt from it.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Examples) -> None:
        self.examples = rows

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: Sequence[int]) -> list[Row]:
        return [self._row(index) for index in indices]

    def _row(self, index: int) -> Row:
        if index < len(self.examples):
            return self.examples[index]
        filler = self.examples[min(range(len(self.examples)), key=self.examples.lengths.__getitem__)]
        return {**filler, "labels": [IGNORED] * len(filler["labels"])}


@dataclass
class Padding:
    """Tokens of rows, and those that were computed."""

    tokens: int = 0
    computed: int = 0

    def add(self, tokens: int, computed: int) -> None:
        """Count those of a step."""
        self.tokens += tokens
        self.computed += computed

    @property
    def share(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / self.computed if self.computed else 0.0


@dataclass(frozen=True)
class StepCollator:
    """Makes the batches of one process for a step.

    Args:
        collator: of the rows.
        end_to_end: whether rows follow each other without padding.
    """

    collator: Collator | LabelCollator
    end_to_end: bool

    def __call__(self, micro_batches: Sequence[Sequence[Row]]) -> dict[str, Any]:
        """Collate a step.

        Returns:
            `micro_batches`, as the collator makes them; `supervised`, the supervised tokens of each; `tokens`, those of
            all rows; `computed`, those with padding; `checksum` of the rows.
        """
        joined = self.end_to_end and isinstance(self.collator, Collator)
        batches = [self.collator.end_to_end(rows) if joined else self.collator(rows) for rows in micro_batches]  # type: ignore[union-attr]
        supervised = [int(self.collator.supervised(batch["labels"])) for batch in batches]
        counts = [tokens_in(batch) for batch in batches]
        return {
            "micro_batches": batches,
            "supervised": supervised,
            # A filler's tokens are computed and belong to no row.
            "tokens": sum(real for (real, _), trained in zip(counts, supervised, strict=True) if trained),
            "computed": sum(computed for _, computed in counts),
            "checksum": sum(rows_checksum(self.collator(rows)) for rows in micro_batches),
        }
