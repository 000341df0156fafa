"""DoRA (arXiv 2402.09353): magnitudes of the weight's columns are trained apart from their directions."""

from __future__ import annotations

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from gora.methods.base import Method, Wrapping, lora_config, wrap_with


class Dora(Method):
    """PEFT's DoRA; magnitudes learn at the rate of A."""

    name = "dora"
    plain_lora = False

    def config(self, wrapping: Wrapping) -> LoraConfig:
        """See `Method`."""
        return lora_config(wrapping, use_dora=True)

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`."""
        return wrap_with(model, self.config(wrapping))
