"""MiLoRA (arXiv 2406.09044): the adapter starts with the smallest singular components of each weight."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gora.methods.base import ADAPTER, Wrapping, lora_config, lora_layers, wrap_with
from gora.methods.residual import Residual, base_weight, move


class Milora(Residual):
    """Training keeps to the directions that the base model uses least."""

    name = "milora"

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Residual`."""
        wrapped = wrap_with(model, lora_config(wrapping))
        rank = wrapping.settings.rank
        move(
            wrapped,
            wrapping.initial
            or {
                name: minor_components(base_weight(layer), rank, layer.scaling[ADAPTER])
                for name, layer in lora_layers(wrapped).items()
            },
        )
        return wrapped


@torch.no_grad()
def minor_components(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A and B whose scaled product is the part of a weight with the smallest singular values (paper, section 3.2).

    Args:
        weight: (out, in).
        rank: how many of them.
        scaling: s in s B A.

    Returns:
        A (rank, in) and B (out, rank), float32, each with the root of the singular values.
    """
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    roots = (values[-rank:] / scaling).sqrt()
    return roots[:, None] * right[-rank:], left[:, -rank:] * roots
