"""rsLoRA (arXiv 2312.03732): LoRA with the scaling alpha / sqrt(rank)."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from gora.core.initial import module_alpha
from gora.methods.base import Method, Wrapping, lora_config, wrap_with


class RsLora(Method):
    """LoRA with rank-stabilised scaling, written as an alpha that every runtime understands."""

    name = "rslora"

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`."""
        shared = wrapping.settings
        return wrap_with(model, lora_config(wrapping, lora_alpha=module_alpha(shared.alpha, shared.rank)))
