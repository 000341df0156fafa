"""LoRA-GA as PEFT has it: B also carries singular values of the gradient, and is nearly zero where that is small."""

from __future__ import annotations

from peft import LoraConfig, LoraGAConfig, PeftModel
from transformers import PreTrainedModel

from gora.methods.base import Wrapping, lora_config
from gora.methods.residual import Residual
from gora.models.targets import as_out_in


class LoraGaPeft(Residual):
    """PEFT's LoRA-GA with stable scaling, on the mean gradients that gora collects."""

    name = "lora-ga-peft"

    def moving_config(self, wrapping: Wrapping) -> LoraConfig:
        """See `Residual`."""
        return lora_config(wrapping, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Residual`. PEFT looks for each layer's gradient beside its weight, in the weight's shape."""
        if wrapping.initial is None:
            gradient_of = wrapping.gradients()
            for name, layer in wrapping.targets.items():
                layer._peft_loraga_grad = as_out_in(layer, gradient_of(name))  # type: ignore[assignment]
        return super().wrap(model, wrapping)
