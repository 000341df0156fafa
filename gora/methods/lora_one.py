"""LoRA-One (arXiv 2502.01235): the adapter starts as the best step of its rank against each weight's gradient."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gora.core.initial import leading_components, module_alpha
from gora.methods.base import Method, Wrapping, lora_config, lora_layers, pair, wrap_with

_GAMMA = 128.0


class LoraOne(Method):
    """LoRA-One as its authors' code has it, without a preconditioner, on the mean gradients that gora collects."""

    name = "lora-one"

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`; the base weights stay as they are."""
        shared, gradient_of = wrapping.settings, wrapping.gradients()
        factors = {name: starting_factors(gradient_of(name), shared.rank) for name in wrapping.targets}
        wrapped = wrap_with(model, lora_config(wrapping, lora_alpha=module_alpha(shared.alpha, shared.rank)))
        with torch.no_grad():
            for name, layer in lora_layers(wrapped).items():
                for mine, value in zip(pair(layer), factors[name], strict=True):
                    mine.copy_(value)
        return wrapped


def starting_factors(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A = sqrt(S / S_1) V^T / sqrt(128) and B = -U sqrt(S / S_1) / sqrt(128), of the leading singular triplets of G.

    B A has the spectral norm 1/128 in every layer, and A and B are balanced.

    Args:
        gradient: G, the mean gradient, (out, in).
        rank: r.

    Returns:
        A (rank, in) and B (out, rank), float32, on the gradient's device; B is zero where G is.
    """
    left, values, right = leading_components(gradient, rank)
    if not values[0]:
        return (right / _GAMMA**0.5).float().contiguous(), torch.zeros_like(left, dtype=torch.float32).contiguous()
    roots = (values / values[0] / _GAMMA).sqrt()
    return (roots[:, None] * right).float().contiguous(), (-left * roots).float().contiguous()
