"""LoRA-Pro (arXiv 2407.18242): gradients of A and B are adjusted so that together they move W as its own would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.methods.base import ADAPTER, lora_layers, pair
from gora.methods.lora import Lora

_SINGULAR = 1e-6


class LoraPro(Lora):
    """The adjusted gradients go to AdamW, as in the authors' efficient mode."""

    name = "lora-pro"
    whole_gradients = True

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """See `Method`."""
        return [_Adjust(list(lora_layers(model).values()))]  # type: ignore[arg-type]


class _Adjust(TrainerCallback):
    """Replaces the gradients before a step."""

    def __init__(self, layers: list[LoraLayer]) -> None:
        self._layers = layers

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        learning = [layer for layer in self._layers if all(factor.grad is not None for factor in pair(layer))]
        for layer, spectra in zip(learning, _spectra([pair(layer) for layer in learning]), strict=True):
            factor_a, factor_b = pair(layer)
            assert factor_a.grad is not None and factor_b.grad is not None
            factor_a.grad, factor_b.grad = adjusted(
                factor_a.grad, factor_b.grad, factor_a.detach(), factor_b.detach(), layer.scaling[ADAPTER], spectra
            )


@dataclass(frozen=True)
class _Spectrum:
    """Eigenvalues and eigenvectors of a Gram matrix: (rank,) and (rank, rank), float64."""

    values: Tensor
    vectors: Tensor

    def inverse(self) -> Tensor:
        """The pseudo-inverse of the matrix."""
        small = self.values <= _SINGULAR * self.values.max()
        return (self.vectors * torch.where(small, 0.0, 1 / self.values)) @ self.vectors.T


@torch.no_grad()
def _spectra(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[_Spectrum, _Spectrum]]:
    """Of A A^T and B^T B of each pair; those of one size at once, which takes a GPU fewer launches."""
    found: dict[int, tuple[_Spectrum, _Spectrum]] = {}
    by_rank: dict[int, list[int]] = {}
    for number, (factor_a, _) in enumerate(pairs):
        by_rank.setdefault(len(factor_a), []).append(number)
    for numbers in by_rank.values():
        grams = [gram for number in numbers for gram in _grams(*pairs[number])]
        values, vectors = torch.linalg.eigh(torch.stack(grams).double())
        each = [_Spectrum(*one) for one in zip(values, vectors, strict=True)]
        found |= dict(zip(numbers, zip(each[::2], each[1::2], strict=True), strict=True))
    return [found[number] for number in range(len(pairs))]


def _grams(factor_a: Tensor, factor_b: Tensor) -> tuple[Tensor, Tensor]:
    return factor_a @ factor_a.T, factor_b.T @ factor_b


@torch.no_grad()
def adjusted(
    gradient_a: Tensor,
    gradient_b: Tensor,
    factor_a: Tensor,
    factor_b: Tensor,
    scaling: float,
    spectra: tuple[_Spectrum, _Spectrum] | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of A and B whose effect s (B g_A + g_B A) is nearest to the gradient of W (theorems 2.1 and 2.3).

    Args:
        gradient_a: s B^T G, (rank, in).
        gradient_b: s G A^T, (out, rank).
        factor_a: A, (rank, in).
        factor_b: B, (out, rank); directions in which it is zero get no gradient of A.
        scaling: s.
        spectra: of A A^T and B^T B, where they are known.

    Returns:
        The adjusted gradients. Of all pairs that are equally near, the one closest to the given gradients.
    """
    of_a, of_b = spectra or _spectra([(factor_a, factor_b)])[0]
    inverse_a, inverse_b = of_a.inverse(), of_b.inverse()
    grad_a, grad_b, a, b = (each.double() for each in (gradient_a, gradient_b, factor_a, factor_b))
    plain_a = inverse_b @ grad_a / scaling**2
    outside_b = grad_b - b @ (inverse_b @ (b.T @ grad_b))
    free = _sylvester(of_b, of_a, -plain_a @ a.T)
    new_a = plain_a + free @ a
    new_b = outside_b @ inverse_a / scaling**2 - b @ free
    return new_a.to(gradient_a.dtype), new_b.to(gradient_b.dtype)


def _sylvester(left: _Spectrum, right: _Spectrum, wanted: Tensor) -> Tensor:
    """X with left X + X right = wanted, for symmetric matrices without negative eigenvalues."""
    sums = left.values[:, None] + right.values[None, :]
    turned = left.vectors.T @ wanted @ right.vectors
    solved = torch.where(sums > _SINGULAR * sums.max(), turned / sums, 0.0)
    return left.vectors @ solved @ right.vectors.T
