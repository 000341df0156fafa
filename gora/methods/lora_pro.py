"""LoRA-Pro (arXiv 2407.18242): gradients of A and B are adjusted so that together they move W as its own would."""

from __future__ import annotations

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
        for layer in self._layers:
            factor_a, factor_b = pair(layer)
            if factor_a.grad is not None and factor_b.grad is not None:
                factor_a.grad, factor_b.grad = adjusted(
                    factor_a.grad, factor_b.grad, factor_a.detach(), factor_b.detach(), layer.scaling[ADAPTER]
                )


@torch.no_grad()
def adjusted(
    gradient_a: Tensor, gradient_b: Tensor, factor_a: Tensor, factor_b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Gradients of A and B whose effect s (B g_A + g_B A) is nearest to the gradient of W (theorems 2.1 and 2.3).

    Args:
        gradient_a: s B^T G, (rank, in).
        gradient_b: s G A^T, (out, rank).
        factor_a: A, (rank, in).
        factor_b: B, (out, rank); directions in which it is zero get no gradient of A.
        scaling: s.

    Returns:
        The adjusted gradients. Of all pairs that are equally near, the one closest to the given gradients.
    """
    gram_a, gram_b = (factor_a @ factor_a.T).double(), (factor_b.T @ factor_b).double()
    inverse_a, inverse_b = (_pseudo_inverse(gram) for gram in (gram_a, gram_b))
    grad_a, grad_b, a, b = (each.double() for each in (gradient_a, gradient_b, factor_a, factor_b))
    plain_a = inverse_b @ grad_a / scaling**2
    outside_b = grad_b - b @ (inverse_b @ (b.T @ grad_b))
    free = _sylvester(gram_b, gram_a, -plain_a @ a.T)
    new_a = plain_a + free @ a
    new_b = outside_b @ inverse_a / scaling**2 - b @ free
    return new_a.to(gradient_a.dtype), new_b.to(gradient_b.dtype)


def _pseudo_inverse(gram: Tensor) -> Tensor:
    return torch.linalg.pinv(gram, hermitian=True, rtol=_SINGULAR)


def _sylvester(left: Tensor, right: Tensor, wanted: Tensor) -> Tensor:
    """X with left X + X right = wanted, for symmetric matrices without negative eigenvalues."""
    values_left, vectors_left = torch.linalg.eigh(left)
    values_right, vectors_right = torch.linalg.eigh(right)
    sums = values_left[:, None] + values_right[None, :]
    turned = vectors_left.T @ wanted @ vectors_right
    solved = torch.where(sums > _SINGULAR * sums.max(), turned / sums, 0.0)
    return vectors_left @ solved @ vectors_right.T
