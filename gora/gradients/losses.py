"""Losses on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_AHEAD = 2
"""Passes that the host may be ahead of the device."""


class Losses:
    """Values that are read when they have arrived, so that nothing waits for them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Sequence[int], Tensor, torch.cuda.Event | None]] = []

    def put(self, indices: Sequence[int], losses: Tensor) -> None:
        """Start the transfer of the losses of a pass, one for each of its micro-batches."""
        losses = losses.detach().view(-1)
        if not losses.is_cuda:
            self._waiting.append((indices, losses, None))
            return
        values = losses.to("cpu", non_blocking=True)
        self._waiting.append((indices, values, torch.cuda.current_stream().record_event()))

    def ready(self) -> Iterator[tuple[int, float]]:
        """Those that have arrived; and the oldest ones, when the host has run too far ahead."""
        while self._waiting:
            event = self._waiting[0][2]
            if event is not None and not event.query() and len(self._waiting) <= _AHEAD:
                return
            yield from self._oldest()

    def all(self) -> Iterator[tuple[int, float]]:
        """Wait for the rest."""
        while self._waiting:
            yield from self._oldest()

    def _oldest(self) -> Iterator[tuple[int, float]]:
        indices, values, event = self._waiting.pop(0)
        if event is not None:
            event.synchronize()
        yield from zip(indices, values.tolist(), strict=True)
