"""LoRA layers in the arithmetic of their base: A and B stay float32, their products are computed in the base's type.

PEFT casts every input to the type of A. With float32 values on a bfloat16 base, that is a copy of each layer's input at
four bytes a number, kept for the backward pass, where the input itself lies there already.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def make_lean(model: nn.Module) -> bool:
    """Replace the forward pass of plain LoRA layers on linear layers in half precision.

    Layers with dropout, DoRA or several adapters keep PEFT's.

    Returns:
        Whether the whole model can be run without autocast: all else is in the base's type.
    """
    if not isinstance(model, PeftModel):
        return False
    layers = [module for module in model.modules() if isinstance(module, Linear) and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    lean = {id(weight) for layer in layers for weight in (_a(layer), _b(layer))}
    rest = {value.dtype for value in model.parameters() if value.is_floating_point() and id(value) not in lean}
    return bool(layers) and rest == {torch.bfloat16}


def _is_plain(layer: Linear) -> bool:
    (adapter, *others) = layer.active_adapters or [""]
    return (
        not others
        and set(layer.lora_A) == {adapter}
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and not layer.lora_bias.get(adapter, False)
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.weight.dtype == torch.bfloat16
    )


def _a(layer: Linear) -> Tensor:
    return cast(Tensor, layer.lora_A[layer.active_adapters[0]].weight)


def _b(layer: Linear) -> Tensor:
    return cast(Tensor, layer.lora_B[layer.active_adapters[0]].weight)


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of the layer's `forward`: W x + s B A x."""
    if self.disable_adapters or self.merged or args or kwargs or x.dtype != torch.bfloat16:
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    scaling = self.scaling[self.active_adapters[0]]
    result: Tensor = self.base_layer(x)
    return result + linear(linear(x, _a(self).to(x.dtype)), (_b(self) * scaling).to(x.dtype))
