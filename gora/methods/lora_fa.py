"""LoRA-FA (arXiv 2308.03303): A stays as it was drawn, and B's gradient is corrected for it."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import PeftModel
from peft.optimizers.lorafa import LoraFAOptimizer
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from gora.methods.base import ADAPTER, Method, Wrapping, lora_config, lora_layers, pair, wrap_with


class LoraFa(Method):
    """PEFT's LoRA-FA optimizer, in one group of known rate and decay."""

    name = "lora-fa"
    parts: ClassVar = {"B": ".lora_B."}
    whole_gradients = True

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`."""
        wrapped = wrap_with(model, lora_config(wrapping))
        for layer in lora_layers(wrapped).values():
            pair(layer)[0].requires_grad_(False)
        return wrapped

    def optimizer(self, model: nn.Module, groups: list[dict[str, Any]]) -> Optimizer:
        """See `Method`. The optimizer wants each A before its B, and a name for both.

        What is no factor, a classifier's head, gets its plain AdamW.
        """
        layers = lora_layers(model)  # type: ignore[arg-type]
        params, names, scalings = [], [], []
        for name, layer in layers.items():
            for part, value in zip("AB", pair(layer), strict=True):
                params.append(value)
                names.append(f"{name}.lora_{part}")
                scalings.append(layer.scaling[ADAPTER])
        pairs = {"params": params, "names": names, "scaling_factors": scalings}
        return LoraFAOptimizer([{**group, **(pairs if group["name"] == "B" else _named(group))} for group in groups])  # type: ignore[misc]


def _named(group: dict[str, Any]) -> dict[str, Any]:
    count = len(group["params"])
    return {"names": [f"{group['name']}.{index}" for index in range(count)], "scaling_factors": [1.0] * count}
