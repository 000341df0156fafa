"""Full fine-tuning of the target weights, without an adapter: what the low-rank methods are measured against."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from gora.methods.base import Method, Wrapping
from gora.models.head import train_head


class Full(Method):
    """The target weights themselves are trained, in float32, and a classifier's head."""

    name = "full"
    parts: ClassVar = {"weights": ".weight"}
    whole_gradients = True
    plain_lora = False

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PreTrainedModel:
        """See `Method`."""
        for layer in wrapping.targets.values():
            weight = layer.weight
            weight.data = weight.data.float()  # type: ignore[union-attr, operator]
            weight.requires_grad_(True)  # type: ignore[operator, union-attr]
        train_head(model)
        return model
