"""Float32 gradient sums in the memory of the device that computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from gora.gradients.accumulate import add_outer

Shape = tuple[int, int]


class Sums(Protocol):
    """One float32 sum, (out, in), for every key; a key stands for one weight, which several layers may share."""

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """Add gradient^T inputs: the gradient of a layer's output, (..., out), and its input, (..., in)."""
        ...

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """Add a whole weight gradient, (out, in)."""
        ...

    def read(self, key: str) -> Tensor:
        """The sum on the computing device; not to be changed, and valid until the next call on this object."""
        ...

    def write(self, key: str, matrix: Tensor) -> None:
        """Replace the sum."""
        ...

    def drop(self, key: str) -> None:
        """Forget a sum and free its memory."""
        ...

    def clear(self) -> None:
        """Set every sum to zero."""
        ...

    def settle(self, now: bool = False) -> None:
        """A micro-batch has ended: time for what is not done at once; all of it `now`, if asked."""
        ...

    def keys(self) -> Iterator[str]:
        """All keys, in the order they were given."""
        ...


class DeviceSums:
    """Sums that stay where the model computes.

    Args:
        shapes: (out, in) of every key.
        device: where they live.
    """

    def __init__(self, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self._sums = {key: torch.zeros(shape, device=device) for key, shape in shapes.items()}

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        add_outer(self._sums[key], gradient, inputs)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._sums[key].add_(matrix)

    def read(self, key: str) -> Tensor:
        """See `Sums`."""
        return self._sums[key]

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._sums[key].copy_(matrix)

    def clear(self) -> None:
        """See `Sums`."""
        for total in self._sums.values():
            total.zero_()

    def drop(self, key: str) -> None:
        """See `Sums`."""
        del self._sums[key]

    def settle(self, now: bool = False) -> None:
        """See `Sums`."""

    def keys(self) -> Iterator[str]:
        """See `Sums`."""
        return iter(self._sums)


class SplitSums:
    """Some sums in one place, the rest in another.

    Args:
        parts: the places; no key is in two of them.
    """

    def __init__(self, *parts: Sums) -> None:
        self._parts = parts
        self._place = {key: part for part in parts for key in part.keys()}  # noqa: SIM118 - a protocol, no dictionary

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        self._place[key].add(key, gradient, inputs)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._place[key].add_matrix(key, matrix)

    def read(self, key: str) -> Tensor:
        """See `Sums`."""
        return self._place[key].read(key)

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._place[key].write(key, matrix)

    def clear(self) -> None:
        """See `Sums`."""
        for part in self._parts:
            part.clear()

    def drop(self, key: str) -> None:
        """See `Sums`."""
        self._place.pop(key).drop(key)

    def settle(self, now: bool = False) -> None:
        """See `Sums`."""
        for part in self._parts:
            part.settle(now)

    def keys(self) -> Iterator[str]:
        """See `Sums`."""
        return iter(self._place)


def all_finite(sums: Sums) -> bool:
    """Whether no sum holds NaN or infinity; one transfer to the host."""
    # A sum of absolute values is finite only where every value is, and reads each once without a copy.
    norms = [torch.linalg.vector_norm(sums.read(key), ord=1) for key in sums.keys()]  # noqa: SIM118
    return not norms or bool(torch.stack(norms).isfinite().all())
