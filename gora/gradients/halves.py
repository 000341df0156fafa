"""The gradients of the first half of a pass, kept as a narrow projection: what of the mean is signal, what noise.

A second sum of whole gradients would take as much memory as the first. Products with the rows of a random matrix have,
on average, the same inner products, and the first of those rows are the A that the paper draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gora.core.initial import draw_a
from gora.gradients.sums import Shape, Sums

_WIDTH = 32


def at_half(rounds: int, processes: int, total: int) -> bool:
    """Whether half of the micro-batches of a pass are done after these rounds, for the first time.

    Args:
        rounds: made so far.
        processes: each adds a micro-batch in a round.
        total: micro-batches of the pass, more than one.
    """
    return (rounds - 1) * processes < total / 2 <= rounds * processes < total


def at_power(rounds: int, processes: int, total: int) -> bool:
    """Whether another power of two of micro-batches is done after these rounds, and more follow: half of what may come.

    Args:
        rounds, processes: see `at_half`.
        total: micro-batches of the pass, at most.
    """
    done, before = rounds * processes, (rounds - 1) * processes
    return 0 < done < total and done.bit_length() > before.bit_length()


class Projection:
    """G Omega^T of every sum, (out, 32) or narrower.

    Args:
        shapes: (out, in) of every key.
        seed: seed of Omega.
        device: what computes.
    """

    def __init__(self, shapes: Mapping[str, Shape], seed: int, device: torch.device) -> None:
        self._shapes, self._seed, self._device = shapes, seed, device
        self._drawn: dict[str, Tensor] = {}

    def __call__(self, key: str, total: Tensor) -> Tensor:
        """The projected sum of one key, float32."""
        if key not in self._drawn:
            shape = self._shapes[key]
            # Kept on the host: drawing takes longer than bringing them over, again at every look.
            self._drawn[key] = draw_a(key, min(_WIDTH, *shape), shape[1], self._seed)
        return total.float() @ self._drawn[key].to(self._device).T

    def in_features(self, key: str) -> int:
        """Inputs of the layer of a key."""
        return self._shapes[key][1]

    def of_all(self, sums: Sums) -> dict[str, Tensor]:
        """The projected sums of all keys that are here, up to date."""
        sums.settle(now=True)
        return {key: self(key, sums.read(key)).clone() for key in list(sums.keys())}


def signal_share(half: Tensor, whole: Tensor, counted_half: int, counted: int) -> float:
    """Which share of the norm of the mean is not noise, from 0 to 1.

    The inner product of the means of two halves has no noise in it on average: its root over the norm of the mean of
    all is the share.

    Args:
        half: projected sum over some of the micro-batches.
        whole: projected sum over all.
        counted_half: how many are in the one.
        counted: how many in the other, more.
    """
    first, second = half.double() / counted_half, (whole - half).double() / (counted - counted_half)
    total = (whole.double() / counted).square().sum().item()
    if not total:
        return 0.0
    return math.sqrt(min(1.0, max(0.0, (first * second).sum().item() / total)))


def above_noise(half: Tensor, whole: Tensor, counted_half: int, counted: int, in_features: int) -> float:
    """Sum of those singular values of the mean gradient that are above all of its noise, estimated from projections.

    The difference of the means of two halves holds no signal; in the right proportion it is as large as the noise of
    the mean of all.

    Args:
        half, whole, counted_half, counted: see `signal_share`.
        in_features: inputs of the layer, by which a projection is shorter.
    """
    rest = counted - counted_half
    difference = half.double() / counted_half - (whole - half).double() / rest
    floor = torch.linalg.matrix_norm(difference * (math.sqrt(counted_half * rest) / counted), ord=2)
    values = torch.linalg.svdvals(whole.double() / counted)
    return values[values > floor].sum().item() * math.sqrt(3 * in_features / whole.shape[1])
