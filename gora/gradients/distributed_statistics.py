"""Statistics of sums that several processes own: each owner answers for its layers, and all hear the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gora.core.importance import Importance, importance
from gora.core.initial import Start
from gora.gradients.sharded import Link
from gora.gradients.statistics import Norm, SummedStatistics, norm_of
from gora.gradients.sums import Shape


class DistributedStatistics:
    """The same answers in every process; every call is made by all of them, in the same order.

    Args:
        own: statistics of the sums that this process owns.
        shapes: (out, in) of every layer.
        owners: each layer's owner.
        weight_of: the weight of a layer, (out, in); it may have to be gathered from all processes.
        link: the other processes.
        device: what computes.
    """

    def __init__(
        self,
        own: SummedStatistics,
        shapes: Mapping[str, Shape],
        owners: Mapping[str, int],
        weight_of: Callable[[str], Tensor],
        link: Link,
        device: torch.device,
    ) -> None:
        self._own, self._shapes, self._owners, self._weight_of = own, shapes, owners, weight_of
        self._link, self._device = link, device
        self._importances: dict[str, dict[str, float]] = {}
        self._norms: dict[str, float] = {}

    def mean(self, name: str) -> Tensor:
        """G of one layer, float32 (out, in), on the computing device."""
        mean = self._own.mean(name) if self._owns(name) else torch.empty(self._shapes[name], device=self._device)
        return self._link.broadcast(mean, self._owners[name])

    def importance(self, name: str, kind: Importance) -> float:
        """See `Statistics`. The first question about a kind is answered for all layers."""
        if kind not in self._importances:
            found = {}
            for layer in self._shapes:
                weight = self._weight_of(layer)
                if self._owns(layer):
                    found[layer] = importance(weight, self._own.mean(layer), kind)
            self._importances[kind] = self._merged(found)
        return self._importances[kind][name]

    def gradient_norm(self, name: str) -> float:
        """See `Statistics`."""
        if not self._norms:
            self._norms = self._merged(
                {layer: self._own.gradient_norm(layer) for layer in self._shapes if self._owns(layer)}
            )
        return self._norms[name]

    def weight_norm(self, name: str, kind: Norm) -> float:
        """See `Statistics`. Every process has the weight, or gathers it: none waits for another's answer."""
        return norm_of(self._weight_of(name), kind)

    def factors(self, name: str, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """See `Statistics`."""
        owner, (rows, columns) = self._owners[name], self._shapes[name]
        if self._owns(name):
            factor_a, factor_b = self._own.factors(name, rank, start)
        else:
            factor_a, factor_b = torch.empty(rank, columns), torch.empty(rows, rank)
        return self._link.broadcast(factor_a, owner), self._link.broadcast(factor_b, owner)

    def _owns(self, name: str) -> bool:
        return self._owners[name] == self._link.index

    def _merged(self, found: dict[str, float]) -> dict[str, float]:
        return {name: value for part in self._link.gather(found) for name, value in part.items()}
