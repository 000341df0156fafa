"""The micro-batches of the gradient pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from gora.data import draw_rows
from gora.models.rows_apart import keeps_apart
from gora.models.supervised_head import IGNORED, PARTS, PREDICTING, has_supervised_head, predicting_places
from gora.recipe.derived import gradient_steps, micro_batch_size
from gora.runs.context import RunContext

ENOUGH_TOKENS = 8192
"""Tokens of a pass from which on more would not make a GPU faster."""
HELD_BACK = 4
"""Micro-batches that the gradients do not see, to try the first step on."""


class MicroBatches:
    """The micro-batches of the gradient pass: rows drawn with the seed, of a stream its first ones; the same at
    every call.

    Args:
        context: gives rows, seed and sizes.
        model: what they are for, which may take rows end to end; None for padded ones.
    """

    def __init__(self, context: RunContext, model: nn.Module | None = None) -> None:
        self._context, self._model = context, model
        self.size = micro_batch_size(context.recipe)
        self.steps = gradient_steps(context.recipe)
        self.indices = range(context.world.index, self.steps, context.world.size)
        """Which of them this process runs: they are dealt out in turn."""
        self.rounds = math.ceil(self.steps / context.world.size)
        self._order = self._drawn(self.steps * self.size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One micro-batch on the device."""
        return self._on_device(self._context.data.train.take(self._rows(index)))

    @property
    def share_passes(self) -> bool:
        """Whether several micro-batches may share a pass, each with a loss of its own: a GPU is given enough to do."""
        model = self._model
        if model is None or self._context.device.type != "cuda" or self._context.recipe.gora.steps == "auto":
            return False
        return keeps_apart(model) and has_supervised_head(model)

    def together(self, indices: Sequence[int]) -> dict[str, Any]:
        """Several micro-batches on the device, end to end."""
        assert self._model is not None
        rows = [row for index in indices for row in self._rows(index)]
        batch = self._context.collate(self._model, self._context.data.train.take(rows))
        supervised = (batch["labels"][0] != IGNORED).split([self.tokens(index) for index in indices])
        batch |= {PREDICTING: predicting_places(batch["labels"]), PARTS: tuple(int(each.sum()) for each in supervised)}
        return self._context.move(batch)

    def ends(self, indices: Sequence[int], due: Callable[[int], bool] = lambda rounds: False) -> list[int]:
        """After how many rounds a pass ends: it has no more tokens than a micro-batch of longest rows.

        Args:
            indices: the micro-batches, one a round.
            due: whether a pass has to end after so many rounds.
        """
        budget, held, ends = min(self.most_tokens, ENOUGH_TOKENS), 0, []
        for rounds, index in enumerate(indices):
            tokens = self.tokens(index)
            if rounds and (held + tokens > budget or due(rounds)):
                ends.append(rounds)
                held = 0
            held += tokens
        return [*ends, len(indices)]

    def heaviest(self) -> dict[str, Any]:
        """The pass that takes most memory, on the device."""
        if not self.share_passes:
            return self[self.longest()]
        ends = self.ends(self.indices)
        passes = [self.indices[first:end] for first, end in pairwise([0, *ends]) if end > first]
        return self.together(max(passes, key=lambda each: sum(map(self.tokens, each))))

    def fixed(self, index: int) -> dict[str, Tensor]:
        """One micro-batch padded to the longest of all, without a mask.

        A causal model never looks ahead, so that padding on the right changes nothing for the tokens before it, and
        padding has no label.
        """
        rows = self._context.data.train
        batch = self._context.collator([rows[row] for row in self._rows(index)], width=self._width())
        return self._context.move({key: batch[key] for key in ("input_ids", "labels")})

    def held_back(self, index: int) -> dict[str, Tensor]:
        """One of `HELD_BACK` micro-batches on the device, of the rows that would come after those of the pass."""
        rows = self._held_rows()[index * self.size : (index + 1) * self.size]
        return self._on_device(self._context.data.train.take(rows))

    def held_back_and_seen(self, steps: int) -> int:
        """How many rows that are held back are also among those of the first micro-batches of the pass."""
        return len(set(self._held_rows()) & set(self._order[: steps * self.size]))

    def tokens(self, index: int) -> int:
        """Its tokens, padding excluded."""
        return sum(self._context.data.train.lengths[row] for row in self._rows(index))

    def where(self, index: int) -> str:
        """Where its rows came from."""
        return "rows " + ", ".join(self._context.data.train.where(row) for row in self._rows(index))

    def longest(self) -> int:
        """The micro-batch that takes most memory: by its longest row, or its tokens if none is padding."""
        lengths = self._context.data.train.lengths
        if self._model and keeps_apart(self._model):
            return max(range(self.steps), key=self.tokens)
        return max(range(self.steps), key=lambda index: max(lengths[row] for row in self._rows(index)))

    @property
    def most_tokens(self) -> int:
        """Tokens of a padded micro-batch, padding included."""
        return self.size * self._width()

    def _drawn(self, count: int) -> list[int]:
        rows = self._context.data.train
        if self._context.data.stream:
            # They are shuffled: the first ones are those of the first steps.
            return [index % len(rows) for index in range(count)]
        return draw_rows(rows, count, self._context.recipe.seed)

    def _held_rows(self) -> list[int]:
        return self._drawn((self.steps + HELD_BACK) * self.size)[self.steps * self.size :]

    def _width(self) -> int:
        return max(self._context.data.train.lengths[row] for row in self._order)

    def _rows(self, index: int) -> list[int]:
        return self._order[index * self.size : (index + 1) * self.size]

    def _on_device(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        if self._model is None:
            return self._context.move(self._context.collator(rows))
        batch = self._context.collate(self._model, rows)
        if has_supervised_head(self._model):
            # Else the host waits in every pass for the device to find them.
            batch[PREDICTING] = predicting_places(batch["labels"])
        return self._context.move(batch)
