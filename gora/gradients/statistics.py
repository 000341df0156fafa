"""What a plan is made of: importance, gradient norm, A and B of every layer, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from torch import Tensor

from gora.core.importance import Importance, importance
from gora.core.initial import Start, initial_values, leading_components
from gora.gradients.sums import Sums

Norm = Literal["frobenius", "spectral"]


def norm_of(weight: Tensor, kind: Norm) -> float:
    """Norm of a weight, (out, in); the spectral one by subspace iteration, to about a percent from below."""
    if kind == "frobenius":
        return weight.float().norm().item()
    return leading_components(weight.float(), min(8, *weight.shape))[1][0].item()


class Statistics(Protocol):
    """Answers about the mean gradient G of every target layer."""

    def importance(self, name: str, kind: Importance) -> float:
        """Importance of a layer; see `gora.core.importance`."""
        ...

    def gradient_norm(self, name: str) -> float:
        """Frobenius norm of G."""
        ...

    def weight_norm(self, name: str, kind: Norm) -> float:
        """Norm of W."""
        ...

    def factors(self, name: str, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), float32."""
        ...


class WholeStatistics(Statistics, Protocol):
    """Statistics that hold G itself."""

    def mean(self, name: str) -> Tensor:
        """G of one layer, float32 (out, in), on the computing device: a copy."""
        ...


class SummedStatistics:
    """Statistics of collected sums.

    Args:
        sums: the sums.
        keys: each layer's key in them.
        weight_of: the weight of a layer, (out, in), on the computing device.
        counted: how many micro-batches are in the sums; may be set once they are collected.
    """

    def __init__(
        self, sums: Sums, keys: Mapping[str, str], weight_of: Callable[[str], Tensor], counted: int = 1
    ) -> None:
        self.sums, self._keys, self._weight_of, self.counted = sums, keys, weight_of, counted

    def mean(self, name: str) -> Tensor:
        """G of one layer, float32 (out, in), on the computing device: a copy."""
        return self.sums.read(self._keys[name]) / self.counted

    def importance(self, name: str, kind: Importance) -> float:
        """See `Statistics`."""
        return importance(self._weight_of(name), self.mean(name), kind)

    def gradient_norm(self, name: str) -> float:
        """See `Statistics`."""
        return self.sums.read(self._keys[name]).norm().item() / self.counted

    def weight_norm(self, name: str, kind: Norm) -> float:
        """See `Statistics`."""
        return norm_of(self._weight_of(name), kind)

    def factors(self, name: str, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """See `Statistics`."""
        return initial_values(name, self.mean(name), rank, start)
