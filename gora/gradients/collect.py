"""Sums of weight gradients over micro-batches (paper, section 3.1 and Algorithm 1).

Micro-batches run one after the other without waiting for the device. Whether everything was finite is looked at on
the way and at the end; only if it was not are the micro-batches run again, each examined before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gora.errors import GoraError
from gora.gradients.attach import Attachment
from gora.gradients.probe import Probe
from gora.gradients.sums import Sums, all_finite

Batch = Mapping[str, Tensor]
_TOLERATED = 0.1


@dataclass(frozen=True)
class Step:
    """What one micro-batch told."""

    index: int
    loss: float
    """Mean loss over the micro-batch's supervised tokens."""


@dataclass
class Progress:
    """How far a collection has come: what is saved beside the sums.

    Attributes:
        cursor: how many micro-batches have been looked at.
        left_out: those of them that hold NaN or infinity, with the reason.
    """

    cursor: int = 0
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        """How many micro-batches are in the sums."""
        return self.cursor - len(self.left_out)


class Keeper(Protocol):
    """Keeps the sums of an unfinished collection."""

    def due(self) -> bool:
        """Whether it is time to save, or to stop."""
        ...

    def keep(self, sums: Sums, progress: Progress) -> None:
        """Save; may end the collection by raising."""
        ...

    def restore(self, sums: Sums) -> Progress:
        """Bring the sums to what was saved last, or to zero."""
        ...


class _NotFiniteError(Exception):
    """Something in the sums is NaN or infinite."""


@dataclass
class Collection:
    """Everything that a collection needs.

    Attributes:
        attachment: connects the model's layers.
        sums: where contributions are added up.
        batch_of: the micro-batch of an index, on the model's device; the same at every call.
        loss_of: mean loss of a micro-batch, a scalar with a graph.
        steps: how many micro-batches there are.
        keeper: saves on the way.
        on_step: told of every micro-batch once its loss is known.
        rows_of: names the rows of a micro-batch, for messages.
        recorder: records a faster way to run the micro-batch of an index, which adds it and gives its loss. May fail
            with a RuntimeError; None where there is no such way.
    """

    attachment: Attachment
    sums: Sums
    batch_of: Callable[[int], Batch]
    loss_of: Callable[[Batch], Tensor]
    steps: int
    keeper: Keeper
    on_step: Callable[[Step], Any] = lambda step: None
    rows_of: Callable[[int], str] = "micro-batch {}".format
    recorder: Callable[[], Callable[[int], Tensor]] | None = None

    def run(self) -> Progress:
        """Collect over all micro-batches.

        A micro-batch whose loss or gradient is not finite is left out for all layers alike.

        Returns:
            How many were looked at and which were left out.

        Raises:
            GoraError: more than a tenth of them were left out, or no gradient reaches any target.
        """
        progress = self.keeper.restore(self.sums)
        with self.attachment.attached():
            try:
                return self._run_ahead(progress)
            except _NotFiniteError:
                return self._run_carefully(self.keeper.restore(self.sums))

    def _run_ahead(self, progress: Progress) -> Progress:
        """The fast way, for micro-batches that are all in order."""
        losses = _Losses()
        start = progress.cursor
        replay = self._record()
        while progress.cursor < self.steps:
            index = progress.cursor
            if replay is not None:
                losses.put(index, replay(index))
            else:
                self._add(index, losses)
            if index == start and self.attachment.adopt_silent():
                # Layers that were passed by are now left to autograd; the first micro-batch is run again for them.
                progress, replay = self.keeper.restore(self.sums), None
                self._add(index, _Losses())
            progress.cursor += 1
            self._tell(losses.ready())
            if self.keeper.due():
                self._tell(losses.all())
                self._check_sums()
                self.keeper.keep(self.sums, progress)
        self._tell(losses.all())
        self._check_sums()
        return progress

    def _record(self) -> Callable[[int], Tensor] | None:
        if self.recorder is None:
            return None
        try:
            return self.recorder()
        except RuntimeError:
            # Some models look at values on the host, which cannot be recorded; running them one by one always works.
            return None

    def _add(self, index: int, losses: _Losses) -> None:
        self.attachment.receiver = self.sums
        loss = self.loss_of(self.batch_of(index))
        if not loss.requires_grad:
            raise GoraError("No target layer takes part in the loss: no gradient can be collected.")
        loss.backward()
        losses.put(index, loss.detach())

    def _tell(self, losses: Iterator[tuple[int, float]]) -> None:
        for index, value in losses:
            if not math.isfinite(value):
                raise _NotFiniteError
            self.on_step(Step(index, value))

    def _check_sums(self) -> None:
        if not all_finite(self.sums):
            raise _NotFiniteError

    def _run_carefully(self, progress: Progress) -> Progress:
        """Each micro-batch is run twice: once to see whether it is in order, and once to be added."""
        while progress.cursor < self.steps:
            index = progress.cursor
            if reason := self._fault(index):
                progress.left_out[index] = f"{reason} ({self.rows_of(index)})"
                self._refuse_too_many(progress)
            else:
                self._add(index, _Losses())
            progress.cursor += 1
            if self.keeper.due():
                self.keeper.keep(self.sums, progress)
        self._check_sums()
        return progress

    def _fault(self, index: int) -> str:
        """What is wrong with a micro-batch; empty where nothing is."""
        batch = self.batch_of(index)
        probe = Probe(next(iter(batch.values())).device)
        self.attachment.receiver = probe
        loss = self.loss_of(batch)
        value = loss.item()
        if not math.isfinite(value):
            return f"its loss is {value}"
        loss.backward()
        if not probe.finite:
            return "a gradient in it is not finite"
        self.on_step(Step(index, value))
        return ""

    def _refuse_too_many(self, progress: Progress) -> None:
        if len(progress.left_out) > _TOLERATED * self.steps:
            named = "\n".join(f"  - micro-batch {index}: {why}" for index, why in list(progress.left_out.items())[:10])
            raise GoraError(
                f"More than a tenth of the {self.steps} micro-batches cannot be used:\n{named}\n"
                "Look at those rows, or compute in float32 (model.dtype: float32)."
            )


class _Losses:
    """Losses on their way from the device, read when they have arrived, so that nothing waits for them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Tensor, torch.cuda.Event | None]] = []

    def put(self, index: int, loss: Tensor) -> None:
        """Start the transfer of one loss."""
        if not loss.is_cuda:
            self._waiting.append((index, loss, None))
            return
        value = loss.to("cpu", non_blocking=True)
        self._waiting.append((index, value, torch.cuda.current_stream().record_event()))

    def ready(self) -> Iterator[tuple[int, float]]:
        """Those that have arrived; and the oldest ones, when the host has run too far ahead."""
        while self._waiting:
            index, value, event = self._waiting[0]
            if event is not None and not event.query():
                if len(self._waiting) <= 2:
                    return
                event.synchronize()
            self._waiting.pop(0)
            yield index, value.item()

    def all(self) -> Iterator[tuple[int, float]]:
        """Wait for the rest."""
        while self._waiting:
            index, value, event = self._waiting.pop(0)
            if event is not None:
                event.synchronize()
            yield index, value.item()
