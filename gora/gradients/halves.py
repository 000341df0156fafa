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


def products(half: Tensor, whole: Tensor) -> Tensor:
    """All that the functions below have to know of two projected sums.

    Args:
        half: projected sum over some of the micro-batches, (out, width).
        whole: projected sum over all.

    Returns:
        Inner products of the columns: of the half with itself, of the half with the rest, of the rest with itself;
        float64, (3, width, width), on the sums' device, which is not waited for.
    """
    first, rest = half.double(), (whole - half).double()
    return torch.stack([first.T @ first, first.T @ rest, rest.T @ rest])


def signal_share(products: Tensor, counted_half: int, counted: int) -> float:
    """Which share of the norm of the mean is not noise, from 0 to 1.

    The inner product of the means of two halves has no noise in it on average: its root over the norm of the mean of
    all is the share.

    Args:
        products: see `products`.
        counted_half: micro-batches of the half.
        counted: of all, more.
    """
    total = _of_sums(products, 1 / counted, 1 / counted).trace().item()
    if not total:
        return 0.0
    between = products[1].trace().item() / (counted_half * (counted - counted_half))
    return math.sqrt(min(1.0, max(0.0, between / total)))


def above_noise(products: Tensor, counted_half: int, counted: int, in_features: int) -> float:
    """Sum of those singular values of the mean gradient that are above all of its noise, estimated from projections.

    The difference of the means of two halves holds no signal; in the right proportion it is as large as the noise of
    the mean of all.

    Args:
        products, counted_half, counted: see `signal_share`.
        in_features: inputs of the layer, by which a projection is shorter.
    """
    rest = counted - counted_half
    proportion = math.sqrt(counted_half * rest) / counted
    noise = _of_sums(products, proportion / counted_half, -proportion / rest)
    floor = _singular_values(noise).max()
    values = _singular_values(_of_sums(products, 1 / counted, 1 / counted))
    return values[values > floor].sum().item() * math.sqrt(3 * in_features / len(values))


def _of_sums(products: Tensor, of_half: float, of_rest: float) -> Tensor:
    """Inner products of the columns of a sum of multiples of the half and of the rest."""
    half, between, rest = products
    return of_half**2 * half + of_half * of_rest * (between + between.T) + of_rest**2 * rest


def _singular_values(inner: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(inner).clamp(min=0).sqrt()
