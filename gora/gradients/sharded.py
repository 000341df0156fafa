"""Gradient sums that several processes share out, as ZeRO-2 shares out gradients: every sum has one owner.

Either each process sums by itself and hands its sums over at the end, one layer after the other, or, where memory does
not allow that, what a micro-batch contributes goes to the owners at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gora.gradients.accumulate import add_outer
from gora.gradients.sums import Shape, Sums


class Link(Protocol):
    """How processes talk to each other; every call is made by all of them, in the same order."""

    @property
    def index(self) -> int:
        """Which process this is."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What each process says, in order of index."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of process `source`, filled in place elsewhere."""
        ...

    def sum_to(self, owner: int, tensor: Tensor) -> None:
        """Sum a tensor over the processes, in place, at `owner`; elsewhere its values are lost."""
        ...


def assign_owners(shapes: Mapping[str, Shape], processes: int) -> dict[str, int]:
    """The owner of every sum: about the same number of entries for each process.

    Args:
        shapes: (out, in) of every key.
        processes: how many own.
    """
    load = [0] * processes
    owners: dict[str, int] = {}
    for key in sorted(shapes, key=lambda key: -math.prod(shapes[key])):
        owner = min(range(processes), key=load.__getitem__)
        owners[key] = owner
        load[owner] += math.prod(shapes[key])
    return {key: owners[key] for key in shapes}


def reduce_to_owners(sums: Sums, keys: Iterable[str], owners: Mapping[str, int], link: Link) -> None:
    """Add up what the processes have summed, each sum at its owner; the others forget it.

    Args:
        sums: whole sums of this process's micro-batches; afterwards those it owns, over all micro-batches.
        keys: all keys, in the same order in every process.
        owners: the owner of every key.
        link: the other processes.
    """
    for key in list(keys):
        # A copy: what `read` gives may be the sum itself, and communication overwrites it.
        total = sums.read(key).clone()
        link.sum_to(owners[key], total)
        if owners[key] == link.index:
            sums.write(key, total)
        else:
            sums.drop(key)


class ShardedSums:
    """Sums of which this process holds those it owns; contributions travel to their owners.

    What the backward pass says is held back until `settle`, in the same order in every process: one may have
    contributions to layers that another has none to.

    Args:
        own: sums of the keys that this process owns.
        shapes: (out, in) of all keys.
        owners: the owner of every key.
        link: the other processes.
        device: what computes.
        together: how many micro-batches go to the owners at once.
    """

    def __init__(
        self,
        own: Sums,
        shapes: Mapping[str, Shape],
        owners: Mapping[str, int],
        link: Link,
        device: torch.device,
        together: int = 1,
    ) -> None:
        self._own, self._shapes, self._owners, self._link = own, shapes, owners, link
        self._device, self._together = device, together
        self._held: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in shapes}
        self._matrices: dict[str, Tensor] = {}
        self._waiting = 0

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """See `Sums`."""
        # Without their history: it would keep the whole backward graph.
        self._held[key].append((gradient.detach(), inputs.detach()))

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        before = self._matrices.get(key)
        self._matrices[key] = matrix.float() if before is None else before + matrix

    def settle(self, now: bool = False) -> None:
        """See `Sums`."""
        self._waiting += 1
        if self._waiting < self._together and not now:
            return
        self._waiting = 0
        for key, owner in self._owners.items():
            product = self._product(key)
            self._link.sum_to(owner, product)
            if owner == self._link.index:
                self._own.add_matrix(key, product)

    def read(self, key: str) -> Tensor:
        """See `Sums`; for keys that this process owns."""
        return self._own.read(key)

    def write(self, key: str, matrix: Tensor) -> None:
        """See `Sums`."""
        self._own.write(key, matrix)

    def drop(self, key: str) -> None:
        """See `Sums`."""
        self._own.drop(key)

    def clear(self) -> None:
        """See `Sums`."""
        for held in self._held.values():
            held.clear()
        self._matrices.clear()
        self._waiting = 0
        self._own.clear()

    def keys(self) -> Iterator[str]:
        """The keys that this process owns."""
        return self._own.keys()

    def _product(self, key: str) -> Tensor:
        product = torch.zeros(self._shapes[key], device=self._device)
        for gradient, inputs in self._held[key]:
            add_outer(product, gradient, inputs)
        self._held[key].clear()
        if key in self._matrices:
            product += self._matrices.pop(key)
        return product
