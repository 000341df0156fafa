"""EVA (arXiv 2410.07170): A starts with the directions in which each layer's inputs vary most; ranks follow them."""

from __future__ import annotations

from peft import EvaConfig, PeftModel
from peft.tuners.lora.eva import initialize_lora_eva_weights
from transformers import PreTrainedModel

from gora.errors import InputError
from gora.methods.base import Method, Wrapping, lora_config, wrap_with
from gora.models.head import head_modules


class Eva(Method):
    """PEFT's EVA on the micro-batches of the gradient pass, forward only."""

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`.

        Raises:
            InputError: the model has an encoder and a decoder, whose inputs PEFT's EVA cannot tell apart.
        """
        if model.config.is_encoder_decoder:
            raise InputError("adapter.method: eva is for models without an encoder. Choose another method.")
        assert wrapping.batches is not None
        # Every token of a classifier's input counts; its labels are not of tokens.
        eva_config = EvaConfig(use_label_mask=not head_modules(model))
        wrapped = wrap_with(model, lora_config(wrapping, init_lora_weights="eva", eva_config=eva_config))
        batches = list(wrapping.batches())
        initialize_lora_eva_weights(wrapped, batches, gather_distributed_inputs=False, show_progress_bar=False)  # type: ignore[arg-type]
        return wrapped
