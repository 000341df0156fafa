"""LoRA (arXiv 2106.09685): one rank for every layer, scaling alpha / rank, B starts at zero."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from gora.methods.base import Method, Wrapping, lora_config, wrap_with


class Lora(Method):
    """The baseline."""

    name = "lora"

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """Wrap with equal ranks; see `Method`."""
        return wrap_with(model, lora_config(wrapping))
