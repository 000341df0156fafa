"""Methods that move a part of each base weight into the initial adapter and train on what is left."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from gora.methods.base import ADAPTER, Method, Wrapping, lora_config, lora_layers, pair, wrap_with
from gora.models.targets import as_out_in
from gora.plan import Factors


class Residual(Method):
    """W is replaced by W - s B A, and the adapter starts with that B and A, so that the model computes what it did."""

    moves_weights = True

    def moving_config(self, wrapping: Wrapping) -> LoraConfig:
        """PEFT's configuration, whose initialisation moves the weights."""
        raise NotImplementedError

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`; a resumed run takes the values that it began with instead of computing them again."""
        if wrapping.initial is None:
            return wrap_with(model, self.moving_config(wrapping))
        wrapped = wrap_with(model, lora_config(wrapping))
        move(wrapped, wrapping.initial)
        return wrapped


@torch.no_grad()
def move(wrapped: PeftModel, factors: Factors) -> None:
    """Start every adapted layer with the given A and B, and take their product off its base weight."""
    for name, layer in lora_layers(wrapped).items():
        for mine, value in zip(pair(layer), factors[name], strict=True):
            mine.copy_(value)
        weight = base_weight(layer)
        weight.copy_((weight.float() - product(layer)).to(weight.dtype))


def base_weight(layer: LoraLayer) -> torch.Tensor:
    """The base weight under an adapter as (out, in); a view, also of a turned one."""
    base: nn.Module = layer.get_base_layer()
    return as_out_in(base, base.weight.data)  # type: ignore[arg-type, union-attr]


def product(layer: LoraLayer) -> torch.Tensor:
    """s B A of a layer, float32 (out, in)."""
    factor_a, factor_b = pair(layer)
    return layer.scaling[ADAPTER] * (factor_b.float() @ factor_a.float())
