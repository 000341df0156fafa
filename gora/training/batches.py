"""Which rows each process trains on, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, Sampler

from gora.data import Collator, ImageCollator, LabelCollator
from gora.data.collate import tokens_in
from gora.data.encode import IGNORED
from gora.data.examples import Examples
from gora.errors import GoraError
from gora.models.supervised_head import PREDICTING, predicting_places
from gora.training.layout import StepLayout
from gora.training.rows_checksum import rows_checksum
from gora.training.step_rows import RunSteps

Row = dict[str, list[int]]


class StepNumbers(Sampler[list[int]]):
    """The numbers of an epoch's steps, one at a time: to skip steps, only numbers are skipped.

    Args:
        per_epoch: steps of an epoch.
    """

    def __init__(self, per_epoch: int) -> None:
        self._per_epoch, self._epoch = per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._per_epoch

    @property
    def first(self) -> int:
        """The first step of the chosen epoch."""
        return self._epoch * self._per_epoch + 1

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([step] for step in range(self.first, self.first + self._per_epoch))


@dataclass(frozen=True)
class Refused:
    """What is there instead of a step whose rows cannot be used: told where the step was wanted."""

    error: GoraError


@dataclass(frozen=True)
class DealtStep:
    """A step as one process takes it.

    Attributes:
        micro_batches: the rows of each.
        remarks: what is to be said of rows.
    """

    micro_batches: list[list[Row]]
    remarks: list[str]


class StepBatches(Dataset[DealtStep | Refused]):
    """The micro-batches of one process, by the number of their step: a step has the same rows with any layout and any
    processes.

    A process that has no rows in a turn gets a filler, so that all make the same number of passes.

    Args:
        steps: the rows of each step.
        layout: deals out the rows of a step.
        index: which process this is.
    """

    def __init__(self, steps: RunSteps, layout: StepLayout, index: int) -> None:
        self._steps, self._layout, self._index = steps, layout, index

    def __len__(self) -> int:
        return self._steps.per_epoch

    def __getitem__(self, step: int) -> DealtStep | Refused:
        try:
            return DealtStep(self.micro_batches(step, self._layout), self._steps.remarks())
        except GoraError as error:
            # Raised in a worker, it would come out as one long text of where it was raised.
            return Refused(error)

    def micro_batches(self, step: int, layout: StepLayout) -> list[list[Row]]:
        """The rows of a step in any layout, each micro-batch a list."""
        of = MicroBatchRows(self._steps.rows(step)[0])
        return [of[indices] for indices in self.indices(step, layout)]

    def indices(self, step: int, layout: StepLayout) -> list[list[int]]:
        """The same by the indices of the rows, of which the one after the last is the filler."""
        rows, drawn = self._steps.rows(step)
        return [turn[self._index] or [len(rows)] for turn in layout(drawn, rows.lengths.__getitem__)]


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

    collator: Collator | LabelCollator | ImageCollator
    end_to_end: bool

    def loaded(self, items: Sequence[DealtStep | Refused]) -> dict[str, Any]:
        """Collate the one step that a loader takes at a time, with its `remarks`; `refused` is the error of one that
        cannot be taken."""
        (item,) = items
        if isinstance(item, Refused):
            return {"refused": item.error}
        return {**self(item.micro_batches), "remarks": item.remarks}

    def __call__(self, micro_batches: Sequence[Sequence[Row]]) -> dict[str, Any]:
        """Collate a step.

        Returns:
            `micro_batches`, as the collator makes them; `supervised`, the supervised tokens of each; `whole`, which
            have no padding; `tokens`, those of all rows; `computed`, those with padding; `checksum` of the rows.
        """
        joined = self.end_to_end and isinstance(self.collator, Collator)
        batches = [self.collator.end_to_end(rows) if joined else self.collator(rows) for rows in micro_batches]  # type: ignore[union-attr]
        supervised = [int(self.collator.supervised(batch["labels"])) for batch in batches]
        if isinstance(self.collator, Collator) and not self.collator.encoder_decoder:
            for batch in batches:
                batch[PREDICTING] = predicting_places(batch["labels"])
        counts = [tokens_in(batch) for batch in batches]
        return {
            "micro_batches": batches,
            "supervised": supervised,
            "whole": [real == computed for real, computed in counts],
            # A filler's tokens are computed and belong to no row.
            "tokens": sum(real for (real, _), trained in zip(counts, supervised, strict=True) if trained),
            "computed": sum(computed for _, computed in counts),
            "checksum": sum(rows_checksum(self.collator.identity(rows)) for rows in micro_batches),
        }
