"""Statistics in a fraction of the memory: G is never held, only what a plan needs of it.

B needs G A^T alone, and A is known beforehand: the product is summed at the largest rank, and a smaller rank uses its
first columns. Importance is estimated from a sample of the rows of G.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gora.core.importance import Importance
from gora.core.initial import Start, draw_a, solve_projected
from gora.gradients.statistics import Norm, norm_of
from gora.gradients.sums import DeviceSums, Shape


class SampledStatistics:
    """Takes contributions, as sums do, and answers from them.

    Args:
        shapes: (out, in) of every key.
        rank: the largest rank a layer may get.
        share: share of the rows of G that are sampled, at least 32 of them.
        seed: seed of A and of the sample.
        device: where the model computes.
        keys: each layer's key.
        weight_of: the weight of a layer, (out, in).
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        rank: int,
        share: float,
        seed: int,
        device: torch.device,
        keys: Mapping[str, str],
        weight_of: Callable[[str], Tensor],
    ) -> None:
        self._shapes, self._keys, self._weight_of, self._seed = shapes, keys, weight_of, seed
        self._rows = {key: _sample(key, shape[0], share, seed).to(device) for key, shape in shapes.items()}
        self._a = {key: draw_a(key, min(rank, *shape), shape[1], seed).to(device) for key, shape in shapes.items()}
        # Two small sums a key, in one object that knows how to save and restore them.
        sizes = {f"{key}:rows": (len(self._rows[key]), shape[1]) for key, shape in shapes.items()}
        sizes |= {f"{key}:projection": (shape[0], len(self._a[key])) for key, shape in shapes.items()}
        self.sums = DeviceSums(sizes, device)
        self.counted = 1

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """Take a contribution; see `Receiver`."""
        out, width = self._shapes[key]
        gradient = gradient.reshape(-1, out)
        inputs = inputs.reshape(-1, width).to(gradient.dtype)
        self.sums.add(f"{key}:rows", gradient[:, self._rows[key]], inputs)
        # The projected inputs are narrow: float32 costs little and keeps B exact.
        narrow = inputs.float() @ self._a[key].T
        self.sums.add(f"{key}:projection", gradient.float(), narrow)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """Take a whole weight gradient; see `Receiver`."""
        self.sums.add_matrix(f"{key}:rows", matrix[self._rows[key]])
        self.sums.add_matrix(f"{key}:projection", matrix.float() @ self._a[key].T)

    def read(self, key: str) -> Tensor:
        """One of the two small sums; see `Sums`."""
        return self.sums.read(key)

    def write(self, key: str, matrix: Tensor) -> None:
        """Replace one of them; see `Sums`."""
        self.sums.write(key, matrix)

    def clear(self) -> None:
        """Set all to zero; see `Sums`."""
        self.sums.clear()

    def drop(self, key: str) -> None:
        """Forget one of them; see `Sums`."""
        self.sums.drop(key)

    def settle(self, now: bool = False) -> None:
        """Nothing waits; see `Sums`."""

    def keys(self) -> Iterator[str]:
        """Names of the small sums; see `Sums`."""
        return self.sums.keys()

    def importance(self, name: str, kind: Importance) -> float:
        """Estimate of mean |W * G|, the one importance that does not need all of G; see `Statistics`."""
        assert kind == "sensitivity"
        return self._row_means(name).mean().item()

    def relative_error(self, name: str) -> float:
        """Standard error of the importance over the importance, from the spread of the sampled rows."""
        means = self._row_means(name)
        sampled, rows = len(means), self._shapes[self._keys[name]][0]
        if sampled == rows or not means.any():
            return 0.0
        error = means.std() / math.sqrt(sampled) * math.sqrt(1 - sampled / rows)
        return (error / means.mean()).item()

    def gradient_norm(self, name: str) -> float:
        """Estimate of the norm of G; see `Statistics`."""
        key = self._keys[name]
        sampled = self.sums.read(f"{key}:rows")
        return sampled.norm().item() / self.counted * math.sqrt(self._shapes[key][0] / len(sampled))

    def weight_norm(self, name: str, kind: Norm) -> float:
        """See `Statistics`."""
        return norm_of(self._weight_of(name), kind)

    def factors(self, name: str, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """See `Statistics`. Layers that share a weight share A too."""
        key = self._keys[name]
        factor_a = self._a[key][:rank]
        projected = self.sums.read(f"{key}:projection")[:, :rank] / self.counted
        return factor_a.cpu(), solve_projected(projected, factor_a, start.gamma, start.alpha).cpu()

    def _row_means(self, name: str) -> Tensor:
        key = self._keys[name]
        mean = self.sums.read(f"{key}:rows") / self.counted
        return (self._weight_of(name)[self._rows[key]].float() * mean).abs_().mean(dim=1)


def _sample(key: str, rows: int, share: float, seed: int) -> Tensor:
    """Which rows of a layer's G are kept: drawn by name and seed, in order."""
    digest = hashlib.sha256(f"rows:{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    count = min(rows, max(32, round(rows * share)))
    return torch.randperm(rows, generator=generator)[:count].sort().values
