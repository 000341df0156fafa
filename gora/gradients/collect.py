"""Sums of weight gradients over micro-batches (paper, section 3.1 and Algorithm 1).

Micro-batches run one after the other without waiting for the device. Whether everything was finite is looked at on
the way and at the end; only if it was not are the micro-batches run again, each examined before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from gora.errors import GoraError
from gora.gradients.attach import Attachment
from gora.gradients.losses import Losses
from gora.gradients.probe import Probe
from gora.gradients.progress import Progress
from gora.gradients.replay import Recorder
from gora.gradients.sums import Sums, all_finite
from gora.gradients.watch import NoWatch, Watch

Batch = Mapping[str, Tensor]
_TOLERATED = 0.1


@dataclass(frozen=True)
class Step:
    """What one micro-batch told."""

    index: int
    loss: float
    """Mean loss over the micro-batch's supervised tokens."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How the processes of a run go through the micro-batches.

    Attributes:
        indices: the micro-batches of this process.
        rounds: how many rounds all processes make; one with fewer micro-batches has nothing to do in the last.
        total: micro-batches of all processes.
        agree: whether something holds in any process. Where each goes at its own pace, in this one.
        computes_together: every pass needs all processes, because each holds a share of the model's weights.
    """

    indices: Sequence[int]
    rounds: int
    total: int
    agree: Callable[[bool], bool] = bool
    computes_together: bool = False

    @classmethod
    def alone(cls, steps: int) -> Pace:
        """One process does everything."""
        return cls(indices=range(steps), rounds=steps, total=steps)


class Checkpoint(Protocol):
    """Keeps the sums of an unfinished collection."""

    def due(self) -> bool:
        """Whether it is time to save, or to stop."""
        ...

    def save(self, sums: Sums, progress: Progress) -> None:
        """Save; may end the collection by raising."""
        ...

    def restore(self, sums: Sums) -> Progress:
        """Bring the sums to what was saved last, or to zero."""
        ...


class _NotFiniteError(Exception):
    """Something in the sums is NaN or infinite."""


@dataclass(kw_only=True)
class Collection:
    """Everything that a collection needs.

    Attributes:
        attachment: connects the model's layers.
        sums: where contributions are added up.
        batch_of: the micro-batch of an index, on the model's device; the same at every call.
        loss_of: mean loss of a micro-batch, a scalar with a graph; of several, one for each.
        pace: which micro-batches are run, and how far in step with other processes.
        checkpoint: saves on the way.
        on_step: told of every micro-batch once its loss is known.
        rows_of: names the rows of a micro-batch, for messages.
        recorder: replays micro-batches where that is faster than running them; None where it is not possible.
        watch: is asked after every pass whether to stop.
        ends: rounds after which a pass ends, where micro-batches share passes; without any, each has its own.
        together: several micro-batches in one batch, by their indices; asked for where they share passes.
    """

    attachment: Attachment
    sums: Sums
    batch_of: Callable[[int], Batch]
    loss_of: Callable[[Batch], Tensor]
    pace: Pace
    checkpoint: Checkpoint
    on_step: Callable[[Step], Any] = lambda step: None
    rows_of: Callable[[int], str] = "micro-batch {}".format
    recorder: Recorder | None = None
    watch: Watch = field(default_factory=NoWatch)
    ends: Sequence[int] = ()
    together: Callable[[Sequence[int]], Batch] | None = None

    def run(self) -> Progress:
        """Collect over all micro-batches.

        A micro-batch whose loss or gradient is not finite is left out for all layers alike.

        Returns:
            How many were looked at and which were left out.

        Raises:
            GoraError: more than a tenth of them were left out, or no gradient reaches any target.
        """
        progress = self.checkpoint.restore(self.sums)
        with self.attachment.attached():
            try:
                return self._run_ahead(progress)
            except _NotFiniteError:
                return self._run_carefully(self.checkpoint.restore(self.sums))

    def _run_ahead(self, progress: Progress) -> Progress:
        """The fast way, for micro-batches that are all in order."""
        losses = Losses()
        start = progress.cursor
        while progress.cursor < self.pace.rounds:
            first, rounds = progress.cursor == start, self._rounds(progress)
            self._round(progress, losses, rounds)
            has_one = self._index(progress) is not None
            if first and self.pace.agree(has_one and self.attachment.adopt_silent()):
                self._refuse_passing_by()
                # Layers that were passed by are now left to autograd; the first micro-batch is run again for them.
                progress = self.checkpoint.restore(self.sums)
                self._round(progress, Losses(), rounds)
            progress.cursor += rounds
            self.sums.settle()
            self._refuse_not_finite(not self._tell(losses.ready()))
            if self._enough(progress):
                break
            if self.pace.agree(self.checkpoint.due()):
                self._finish(losses)
                self.checkpoint.save(self.sums, progress)
        self._finish(losses)
        return progress

    def _enough(self, progress: Progress) -> bool:
        progress.stopped = self.watch.look(progress, self.sums)
        return bool(progress.stopped)

    def _refuse_passing_by(self) -> None:
        if self.pace.computes_together:
            raise GoraError(
                "Some target layers are never called in the forward pass, which cannot be followed while weights are "
                "sharded over processes. Leave them out (adapter.exclude), or give distributed: ddp."
            )

    def _rounds(self, progress: Progress) -> int:
        """How many rounds the pass makes whose turn it is."""
        if self.recorder is not None and self.recorder.replays:
            return 1
        return next((end - progress.cursor for end in self.ends if end > progress.cursor), 1)

    def _round(self, progress: Progress, losses: Losses, rounds: int) -> None:
        """Add the micro-batches whose turn it is, if there is one for this process."""
        index = self._index(progress)
        indices = self.pace.indices[progress.cursor : progress.cursor + rounds]
        if index is None:
            progress.idle += 1
            self._keep_company()
        elif self.recorder is None:
            self._add(indices, losses)
        elif self.recorder.replays:
            losses.put([index], self.recorder.replay(index))
        else:
            self.recorder.run(partial(self._add, indices, losses), len(indices))

    def _index(self, progress: Progress) -> int | None:
        indices = self.pace.indices
        return indices[progress.cursor] if progress.cursor < len(indices) else None

    def _add(self, indices: Sequence[int], losses: Losses) -> None:
        self.attachment.receiver = self.sums
        shared = self.together is not None and len(indices) > 1
        means = self.loss_of(self.together(indices) if shared else self.batch_of(indices[0]))  # type: ignore[misc]
        if not means.requires_grad:
            raise GoraError("No target layer takes part in the loss: no gradient can be collected.")
        (means.sum() if shared else means).backward()
        losses.put(indices, means)

    def _keep_company(self) -> None:
        """A pass that counts for nothing, where the others cannot do theirs without this process."""
        if self.pace.computes_together:
            batch = self.batch_of(0)
            self.attachment.receiver = _probe(batch)
            self.loss_of(batch).backward()

    def _tell(self, losses: Iterator[tuple[int, float]]) -> bool:
        """Whether all losses are finite; those before the first that is not are told."""
        for index, value in losses:
            if not math.isfinite(value):
                return False
            self.on_step(Step(index, value))
        return True

    def _finish(self, losses: Losses) -> None:
        """Bring the sums up to date, and look at all of them."""
        self.sums.settle(now=True)
        self._refuse_not_finite(not self._tell(losses.all()) or not all_finite(self.sums))

    def _refuse_not_finite(self, found: bool) -> None:
        if self.pace.agree(found):
            raise _NotFiniteError

    def _run_carefully(self, progress: Progress) -> Progress:
        """Each micro-batch is run twice: once to see whether it is in order, and once to be added."""
        while progress.cursor < self.pace.rounds:
            index = self._index(progress)
            if index is None:
                progress.idle += 1
                self._keep_company()
                self._keep_company()
            elif reason := self._fault(index):
                progress.left_out[index] = f"{reason} ({self.rows_of(index)})"
                refuse_too_many(progress.left_out, self.pace.total)
                self._keep_company()
            else:
                self._add([index], Losses())
            progress.cursor += 1
            self.sums.settle()
            if self._enough(progress):
                break
            if self.pace.agree(self.checkpoint.due()):
                self.sums.settle(now=True)
                self.checkpoint.save(self.sums, progress)
        self._finish(Losses())
        return progress

    def _fault(self, index: int) -> str:
        """What is wrong with a micro-batch; empty where nothing is."""
        batch = self.batch_of(index)
        probe = self.attachment.receiver = _probe(batch)
        loss = self.loss_of(batch)
        value = loss.item()
        loss.backward()
        if not math.isfinite(value):
            return f"its loss is {value}"
        if not probe.finite:
            return "a gradient in it is not finite"
        self.on_step(Step(index, value))
        return ""


def refuse_too_many(left_out: Mapping[int, str], total: int) -> None:
    """End where too few micro-batches are left to speak for the data.

    Raises:
        GoraError: more than a tenth of all micro-batches cannot be used; the first ten are named.
    """
    if len(left_out) > _TOLERATED * total:
        named = "\n".join(f"  - micro-batch {index}: {why}" for index, why in list(left_out.items())[:10])
        raise GoraError(
            f"More than a tenth of the {total} micro-batches cannot be used:\n{named}\n"
            "Look at those rows, or compute in float32 (model.dtype: float32).",
            code="not-finite",
        )


def _probe(batch: Batch) -> Probe:
    return Probe(next(iter(batch.values())).device)
