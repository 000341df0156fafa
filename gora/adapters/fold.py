"""Adding an adapter to base weights: in float32, rounded once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from gora.models.stored_tensors import row_pieces


@torch.no_grad()
def fold(wrapped: PeftModel) -> None:
    """Add scaling B A to every adapted base weight, in float32, rounded to the weight's type once."""
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            weight: Any = getattr(base, layer.parameter_name) if isinstance(layer, ParamWrapper) else base.weight
            weight.copy_(folded(layer, weight).to(weight.dtype))
            if any(layer.lora_bias.values()):
                base.bias.copy_(folded_bias(layer, base.bias).to(base.bias.dtype))


@torch.no_grad()
def folded(layer: Any, weight: Tensor) -> Tensor:
    """A base weight with all active adapters of its layer.

    Args:
        layer: PEFT's layer round it; A and B in float32.
        weight: of the base layer, in any type.

    Returns:
        The weight plus the sum of scaling B A, in float32. With DoRA, its rows (the columns of a Conv1D) have the
        trained magnitudes.
    """
    result = weight.to(torch.float32, copy=True)
    for name in layer.active_adapters:
        if name in layer.scaling:
            result.add_(_update(layer, name).to(result.device))
    for name in layer.active_adapters:
        if name in layer.lora_magnitude_vector:
            outputs = 0 if isinstance(layer.get_base_layer(), Conv1D) else 1
            magnitude = layer.lora_magnitude_vector[name].weight.float()
            norm = torch.linalg.norm(result, dim=outputs)
            result = (magnitude / norm).unsqueeze(outputs) * result
    return result


def folded_pieces(layer: Any, weight: Tensor) -> Iterator[Tensor]:
    """What `folded` returns, bit for bit, in blocks of rows; each is valid until the next is asked for.

    B A of a plain linear layer goes into a buffer that the thread keeps, and is added to a few rows at a time: on a
    CPU, fresh memory for every weight takes longer than the arithmetic.
    """
    (adapter, *others) = [name for name in layer.active_adapters if name in layer.scaling] or [""]
    plain = type(layer) is Linear and not (others or layer.fan_in_fan_out or adapter in layer.lora_magnitude_vector)
    if not (adapter and plain and weight.device.type == "cpu"):
        yield folded(layer, weight)
        return
    product = _kept(weight.numel()).view(weight.shape)
    with torch.no_grad():
        factor_a, factor_b = (held[adapter].weight.float().cpu() for held in (layer.lora_A, layer.lora_B))
        torch.matmul(factor_b, factor_a, out=product)
    for update, rows in zip(row_pieces(product), row_pieces(weight, like=product), strict=True):
        # Not around the yield: who does not take all pieces would be left without gradients.
        with torch.no_grad():
            update.mul_(layer.scaling[adapter]).add_(rows)
        yield update


_THREAD = threading.local()


def _kept(numbers: int) -> Tensor:
    """Float32 memory of this thread, of that many numbers."""
    held: Tensor | None = getattr(_THREAD, "memory", None)
    if held is None or held.numel() < numbers:
        _THREAD.memory = held = torch.empty(numbers)
    return held[:numbers]


def _update(layer: Any, name: str) -> Tensor:
    """Scaling B A of one adapter in float32, as PEFT computes it; of a linear layer without its copy of the product."""
    if type(layer) is not Linear:
        delta: Tensor = layer.get_delta_weight(name).float()
        return delta
    held: Any = layer
    factor_a, factor_b = held.lora_A[name].weight.float(), held.lora_B[name].weight.float()
    product: Tensor = (factor_b @ factor_a).mul_(held.scaling[name])
    return product.T if held.fan_in_fan_out else product


@torch.no_grad()
def folded_bias(layer: Any, bias: Tensor) -> Tensor:
    """A base bias plus scaling times the biases of B, in float32."""
    result = bias.float()
    for name in layer.active_adapters:
        if layer.lora_bias.get(name):
            result = result + (layer.lora_B[name].bias * layer.scaling[name]).float().to(result.device)
    return result


def adapted_weights(wrapped: PeftModel) -> dict[str, Any]:
    """PEFT's layer round every adapted base weight, by the weight's name in the model that is not wrapped."""
    found: dict[str, Any] = {}
    for name, layer in wrapped.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            own = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            inner = ".".join(part for part in name.split(".") if part != "base_layer")
            found[f"{inner}.{own}"] = layer
    return found
