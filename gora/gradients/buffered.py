"""Contributions of several micro-batches, added to a far sum at once.

A sum in host memory passes over the bus in both directions whenever it is added to, however few tokens are added.
Holding back what the backward pass says about a layer until enough tokens are there divides that traffic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gora.gradients.sums import Shape, Sums

ENOUGH_TOKENS = 4096
"""From here on the products take about as long as the passage: more would take memory and save nothing."""


def micro_batches_to_buffer(tokens: int) -> int:
    """How many micro-batches of `tokens` tokens are worth adding at once."""
    return max(1, ENOUGH_TOKENS // max(tokens, 1))


def buffered_bytes(shape: Shape, tokens: int, count: int, width: int) -> int:
    """Bytes of what is held back for one sum, on average over the layers, whose turns are spread.

    Args:
        shape: (out, in) of the sum.
        tokens: tokens of a micro-batch.
        count: micro-batches that are added at once.
        width: bytes of one value of the operands.
    """
    return (count + 1) * tokens * sum(shape) * width // 2 if count > 1 else 0


class BufferedSums:
    """Sums that are added to once every `count` contributions. Layers take turns, so that the traffic is even.

    Args:
        sums: where they go in the end.
        count: how many contributions to a key are brought there together, at least 1.
    """

    def __init__(self, sums: Sums, count: int) -> None:
        self._sums, self._count = sums, count
        self._held: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._due: dict[str, int] = {}
        self._begin()

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        gradient = gradient.reshape(-1, gradient.shape[-1])
        inputs = inputs.reshape(-1, inputs.shape[-1]).to(gradient.dtype)
        # Without their history: it would keep the whole backward graph.
        self._held[key].append((gradient.detach(), inputs.detach()))
        if len(self._held[key]) >= self._due[key]:
            self._bring(key)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`. A whole weight gradient is as large as the sum: it is not held back."""
        self._sums.add_matrix(key, matrix)

    def read(self, key: str) -> Tensor:
        """See `Sums`."""
        self._bring(key)
        return self._sums.read(key)

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._held[key].clear()
        self._sums.write(key, matrix)

    def clear(self) -> None:
        """See `Sums`."""
        self._begin()
        self._sums.clear()

    def drop(self, key: str) -> None:
        """See `Sums`."""
        del self._held[key]
        self._sums.drop(key)

    def settle(self, now: bool = False) -> None:
        """See `Sums`. Reading a sum brings up to date what is held back for it."""

    def keys(self) -> Iterator[str]:
        """See `Sums`."""
        return self._sums.keys()

    def _begin(self) -> None:
        for index, key in enumerate(self._sums.keys()):
            self._held[key] = []
            self._due[key] = 1 + index % self._count

    def _bring(self, key: str) -> None:
        held, self._held[key] = self._held[key], []
        self._due[key] = self._count
        if held:
            gradients, inputs = zip(*held, strict=True)
            self._sums.add(key, torch.cat(gradients), torch.cat(inputs))
