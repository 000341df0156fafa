"""How the rows of an optimizer step are laid out in micro-batches, which changes its speed and not its result."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gora.recipe.schema import Packing

Layout = Literal["none", "by-length", "padding-free", "packed"]
_LITTLE_PADDING = 0.02
_SAMPLED = 4096  # rows


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """Lays out the rows of a step.

    Attributes:
        kind: `none`: rows in the order they were drawn, padded to the longest of a micro-batch; `by-length`: rows of
            similar length share a micro-batch; `padding-free`: as many rows in a micro-batch, end to end;
            `packed`: as many rows end to end as fit the tokens of `size` longest rows.
        size: rows in a micro-batch, `train.micro_batch_size`.
        longest: tokens of the longest row.
        processes: how many share a step.
    """

    kind: Layout
    size: int
    longest: int
    processes: int

    @property
    def end_to_end(self) -> bool:
        """Whether rows follow each other without padding."""
        return self.kind in ("padding-free", "packed")

    def text(self, batch_size: int) -> str:
        """One line about a step of `batch_size` rows."""
        if self.kind == "packed":
            what = f"{batch_size} rows end to end, up to {self.size * self.longest:,} tokens per micro-batch"
            return what + (f" in {self.processes} processes" if self.processes > 1 else "")
        accumulation = batch_size // (self.size * self.processes)
        manner = {"by-length": ", of similar length", "padding-free": ", end to end"}.get(self.kind, "")
        batch = f"{batch_size} rows = {self.size} per micro-batch{manner} x {accumulation} accumulation steps"
        return batch + (f" x {self.processes} processes" if self.processes > 1 else "")

    def __call__(self, rows: Sequence[int], length_of: Callable[[int], int]) -> list[list[list[int]]]:
        """Deal out the rows of a step.

        Args:
            rows: their indices, as drawn.
            length_of: tokens of a row.

        Returns:
            Turns; in each, the micro-batch of every process, which may be empty in the last.
        """
        if self.kind == "packed":
            bins = self._filled(rows, length_of)
        else:
            if self.kind != "none":
                rows = sorted(rows, key=length_of)
            bins = [list(rows[start : start + self.size]) for start in range(0, len(rows), self.size)]
        turns = [bins[start : start + self.processes] for start in range(0, len(bins), self.processes)]
        turns[-1] += [[] for _ in range(self.processes - len(turns[-1]))]
        return turns

    def _filled(self, rows: Sequence[int], length_of: Callable[[int], int]) -> list[list[int]]:
        """As few micro-batches as hold the rows, the same number in every process, all about equally full."""
        budget = self.size * self.longest
        wanted = math.ceil(sum(map(length_of, rows)) / budget)
        number = math.ceil(wanted / self.processes) * self.processes
        longest_first = sorted(rows, key=length_of, reverse=True)
        while True:
            bins: list[list[int]] = [[] for _ in range(number)]
            tokens = [0] * number
            for row in longest_first:
                emptiest = min(range(number), key=tokens.__getitem__)
                bins[emptiest].append(row)
                tokens[emptiest] += length_of(row)
            if max(tokens) <= budget:
                fullest_first = sorted(range(number), key=tokens.__getitem__, reverse=True)
                return [bins[place] for place in fullest_first]
            number += self.processes


def choose_layout(packing: Packing, *, keeps_apart: bool, padding: float) -> Layout:
    """The layout for `data.packing`.

    Args:
        packing: the setting.
        keeps_apart: whether the model can be given rows end to end.
        padding: share of the tokens that is padding where rows of similar length share a micro-batch. Where there is
            next to none, nothing is gained over attention in its plainest form.
    """
    if packing == "auto":
        return "packed" if keeps_apart and padding > _LITTLE_PADDING else "by-length"
    return packing


def padding_by_length(lengths: Sequence[int], batch_size: int, size: int) -> float:
    """Share of padding in micro-batches of rows of similar length.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a step.
        size: rows of a micro-batch.
    """
    places = random.Random(0).sample(range(len(lengths)), min(len(lengths), _SAMPLED))
    sample = [lengths[place] for place in places]
    layout = StepLayout(kind="by-length", size=size, longest=max(sample), processes=1)
    computed = 0
    for start in range(0, len(sample), batch_size):
        turns = layout(range(start, min(start + batch_size, len(sample))), sample.__getitem__)
        computed += sum(len(rows) * max(sample[row] for row in rows) for (rows,) in turns)
    return 1 - sum(sample) / computed
