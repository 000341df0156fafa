"""Losses on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Losses:
    """Values that are read when they have arrived, so that nothing waits for them."""

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
