"""Float32 gradient sums in pinned host memory, which visit the GPU when their layer's turn comes.

A layer's sum is copied to a slot on the GPU ahead of its turn in the backward pass, added to there, and copied back,
each way on a stream of its own. The order of turns is that of the micro-batch before, so that copies run beside the
computation of other layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gora.gradients.accumulate import add_outer
from gora.gradients.sums import Shape

_SLOTS = 4


def staging_bytes(shapes: Mapping[str, Shape]) -> int:
    """Bytes on the GPU through which sums in host memory pass."""
    return _SLOTS * 4 * max(math.prod(shape) for shape in shapes.values())


@dataclass
class _Slot:
    """Room for one sum on the GPU.

    Attributes:
        memory: as many float32 as the largest sum has.
        key: whose sum lies here unused, fetched ahead of its turn.
        filled: when the copy to the GPU is done.
        emptied: when the copy back is done.
        lent: whether somebody may still read it on the computing stream.
    """

    memory: Tensor
    key: str | None = None
    filled: torch.cuda.Event | None = None
    emptied: torch.cuda.Event | None = None
    lent: bool = False


class HostSums:
    """Sums in pinned host memory.

    Args:
        shapes: (out, in) of every key.
        device: the GPU that computes.
    """

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self._sums = {key: torch.zeros(shape, pin_memory=True) for key, shape in shapes.items()}
        largest = max(total.numel() for total in self._sums.values())
        self._slots = [_Slot(torch.empty(largest, device=device)) for _ in range(_SLOTS)]
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._returned: dict[str, torch.cuda.Event] = {}
        self._last: str | None = None
        self._successor: dict[str, str] = {}
        self._fetches = 0

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        slot = self._visit(key)
        add_outer(self._view(slot, key), gradient, inputs)
        self._send_back(slot, key)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        slot = self._visit(key)
        self._view(slot, key).add_(matrix)
        self._send_back(slot, key)

    def read(self, key: str) -> Tensor:
        """See `Sums`."""
        slot = self._visit(key)
        slot.lent = True
        return self._view(slot, key)

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        torch.cuda.synchronize()
        for slot in self._slots:
            slot.key = None
        self._sums[key].copy_(matrix)

    def clear(self) -> None:
        """See `Sums`."""
        torch.cuda.synchronize()
        for slot in self._slots:
            slot.key = None
        for total in self._sums.values():
            total.zero_()

    def keys(self) -> Iterator[str]:
        """See `Sums`."""
        return iter(self._sums)

    def _visit(self, key: str) -> _Slot:
        """The slot that holds the key's sum, ready for the computing stream."""
        slot = next((slot for slot in self._slots if slot.key == key), None) or self._fetch(key)
        assert slot.filled is not None
        torch.cuda.current_stream().wait_event(slot.filled)
        slot.key = None
        return slot

    def _fetch(self, key: str) -> _Slot:
        slot = self._slots[self._fetches % len(self._slots)]
        self._fetches += 1
        if slot.lent:
            self._inward.wait_stream(torch.cuda.current_stream())
            slot.lent = False
        with torch.cuda.stream(self._inward):
            for event in (slot.emptied, self._returned.get(key)):
                if event is not None:
                    self._inward.wait_event(event)
            self._view(slot, key).copy_(self._sums[key], non_blocking=True)
            slot.filled = self._inward.record_event()
        slot.key = key
        return slot

    def _send_back(self, slot: _Slot, key: str) -> None:
        added = torch.cuda.current_stream().record_event()
        with torch.cuda.stream(self._outward):
            self._outward.wait_event(added)
            self._sums[key].copy_(self._view(slot, key), non_blocking=True)
            slot.emptied = self._returned[key] = self._outward.record_event()
        self._fetch_ahead(key)

    def _fetch_ahead(self, key: str) -> None:
        """Fetch the sums whose turns came after this one the last time, leaving one slot to the sum that goes back."""
        if self._last is not None:
            self._successor[self._last] = key
        self._last = key
        following = key
        for _ in range(len(self._slots) - 2):
            following = self._successor.get(following, key)
            if following == key:
                return
            if all(slot.key != following for slot in self._slots):
                self._fetch(following)

    def _view(self, slot: _Slot, key: str) -> Tensor:
        total = self._sums[key]
        return slot.memory[: total.numel()].view(total.shape)
