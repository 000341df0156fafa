"""Float32 gradient sums in pinned host memory, which visit the GPU when their layer's turn comes.

A sum is cut into blocks of rows. A block is copied to a slot on the GPU ahead of its turn in the backward pass, added
to there, and copied back, each way on a stream of its own. The order of turns is that of the micro-batch before, so
that copies run beside the computation of other layers.
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
_BLOCK = 2**24
"""Most entries of a block: one attention matrix of an 8B model, 64 MiB."""


def staging_bytes(shapes: Mapping[str, Shape]) -> int:
    """Bytes on the GPU through which sums in host memory pass."""
    return _SLOTS * 4 * min(_BLOCK, max(math.prod(shape) for shape in shapes.values()))


@dataclass(frozen=True)
class _Block:
    """Some rows of one sum.

    Attributes:
        rows: which of them.
        host: those rows of the sum, in host memory.
    """

    rows: slice
    host: Tensor


@dataclass
class _Slot:
    """Room for one block on the GPU.

    Attributes:
        memory: as many float32 as the largest block has.
        block: what lies here unused, fetched ahead of its turn.
        filled: when the copy to the GPU is done.
        emptied: when the copy back is done.
    """

    memory: Tensor
    block: _Block | None = None
    filled: torch.cuda.Event | None = None
    emptied: torch.cuda.Event | None = None

    def view(self, block: _Block) -> Tensor:
        """The slot's memory in the shape of a block."""
        return self.memory[: block.host.numel()].view(block.host.shape)


class HostSums:
    """Sums in pinned host memory.

    Args:
        shapes: (out, in) of every key.
        device: the GPU that computes.
    """

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self._device = device
        self._sums = {key: torch.zeros(shape, pin_memory=True) for key, shape in shapes.items()}
        self._blocks = {key: _cut(total) for key, total in self._sums.items()}
        largest = max(block.host.numel() for blocks in self._blocks.values() for block in blocks)
        self._slots = [_Slot(torch.empty(largest, device=device)) for _ in range(_SLOTS)]
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)
        # By a block's identity: when its last copy back was done, and which block had its turn next.
        self._returned: dict[int, torch.cuda.Event] = {}
        self._successor: dict[int, _Block] = {}
        self._last: _Block | None = None
        self._fetches = 0

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        gradient = gradient.reshape(-1, self._sums[key].shape[0])
        for block in self._blocks[key]:
            slot = self._visit(block)
            add_outer(slot.view(block), gradient[:, block.rows], inputs)
            self._send_back(slot, block)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        for block in self._blocks[key]:
            slot = self._visit(block)
            slot.view(block).add_(matrix[block.rows])
            self._send_back(slot, block)

    def read(self, key: str) -> Tensor:
        """See `Sums`."""
        torch.cuda.current_stream().wait_stream(self._outward)
        return self._sums[key].to(self._device, non_blocking=True)

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._wait()
        self._sums[key].copy_(matrix)

    def drop(self, key: str) -> None:
        """See `Sums`."""
        self._wait()
        del self._sums[key], self._blocks[key]

    def settle(self, now: bool = False) -> None:
        """See `Sums`."""

    def clear(self) -> None:
        """See `Sums`."""
        self._wait()
        for total in self._sums.values():
            total.zero_()

    def keys(self) -> Iterator[str]:
        """See `Sums`."""
        return iter(self._sums)

    # The protocol of events. Three streams touch a slot: `inward` fills it, the computing stream adds to it, `outward`
    # empties it. None of them waits on the host; each waits for an event of the one before it:
    #   filled    inward -> computing   the block is there, it may be added to
    #   added     computing -> outward  the sum is complete, it may be copied back
    #   emptied   outward -> inward     the slot's memory may be written over by another block
    #   returned  outward -> inward     the block's host memory is up to date, it may be fetched again
    # `emptied` belongs to the slot and `returned` to the block, which may meet in different pairs the next time.

    def _visit(self, block: _Block) -> _Slot:
        """The slot that holds the block, ready for the computing stream."""
        slot = next((slot for slot in self._slots if slot.block is block), None) or self._fetch(block)
        assert slot.filled is not None
        torch.cuda.current_stream().wait_event(slot.filled)
        slot.block = None
        return slot

    def _fetch(self, block: _Block) -> _Slot:
        slot = self._slots[self._fetches % len(self._slots)]
        self._fetches += 1
        with torch.cuda.stream(self._inward):
            for event in (slot.emptied, self._returned.get(id(block))):
                if event is not None:
                    self._inward.wait_event(event)
            slot.view(block).copy_(block.host, non_blocking=True)
            slot.filled = self._inward.record_event()
        slot.block = block
        return slot

    def _send_back(self, slot: _Slot, block: _Block) -> None:
        added = torch.cuda.current_stream().record_event()
        with torch.cuda.stream(self._outward):
            self._outward.wait_event(added)
            block.host.copy_(slot.view(block), non_blocking=True)
            slot.emptied = self._returned[id(block)] = self._outward.record_event()
        self._fetch_ahead(block)

    def _fetch_ahead(self, block: _Block) -> None:
        """Fetch the blocks whose turns came after this one the last time; two slots are left to those that go back."""
        if self._last is not None:
            self._successor[id(self._last)] = block
        self._last = block
        following = block
        for _ in range(len(self._slots) - 2):
            following = self._successor.get(id(following), block)
            if following is block:
                return
            if all(slot.block is not following for slot in self._slots):
                self._fetch(following)

    def _wait(self) -> None:
        """Wait for all copies, and forget what was fetched ahead."""
        torch.cuda.synchronize(self._device)
        for slot in self._slots:
            slot.block = None


def _cut(total: Tensor) -> list[_Block]:
    rows = max(1, _BLOCK // total.shape[1])
    return [_Block(slice(start, start + rows), total[start : start + rows]) for start in range(0, total.shape[0], rows)]
