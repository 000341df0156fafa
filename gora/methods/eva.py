"""EVA (arXiv 2410.07170): A starts with the directions in which each layer's inputs vary most; ranks follow them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from peft import EvaConfig, PeftModel
from peft.tuners.lora.eva import initialize_lora_eva_weights, prepare_layer_inputs_fn_language_modeling
from torch import Tensor, nn
from transformers import PreTrainedModel

from gora.errors import InputError
from gora.methods.base import ADAPTER, Method, Wrapping, lora_config, lora_layers, wrap_with
from gora.models.head import head_modules


class Eva(Method):
    """PEFT's EVA on the micro-batches of the gradient pass, forward only."""

    name = "eva"
    may_leave_out = True

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`.

        Raises:
            InputError: the model has an encoder and a decoder, whose inputs PEFT's EVA cannot tell apart; or a
                micro-batch holds too few inputs of a layer that has one a row.
        """
        if model.config.is_encoder_decoder:
            raise InputError("adapter.method: eva is for models without an encoder. Choose another method.")
        # Every token of a classifier's input counts; its labels are not of tokens.
        config = EvaConfig(use_label_mask=not head_modules(model))
        wrapped = wrap_with(model, lora_config(wrapping, init_lora_weights="eva", eva_config=config))
        batches = list(wrapping.batches())
        if head_modules(model):
            _refuse_few_rows(wrapped, batches[0], round(wrapping.settings.rank * config.rho))
        initialize_lora_eva_weights(
            wrapped,
            batches,  # type: ignore[arg-type]
            prepare_layer_inputs_fn=_inputs,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
        for value in wrapped.parameters():
            if value.requires_grad:
                # PEFT's EVA puts in new layers of the base's precision.
                value.data = value.data.float()
        adapted = lora_layers(wrapped)
        if len(adapted) < len(wrapping.targets):
            # The shortened names that PEFT has written hold for layers without a rank, too: loading would adapt those.
            wrapped.peft_config[ADAPTER].target_modules = set(adapted)  # type: ignore[attr-defined]
        return wrapped


def _inputs(inputs: Tensor | tuple[Tensor, ...], tokens: Tensor, layer: str) -> Tensor:
    """A layer's inputs without those of padding, (tokens, in); BERT's pooler has one a row, all of which count."""
    whole = inputs if isinstance(inputs, Tensor) else inputs[0]
    return whole.contiguous() if whole.dim() == 2 else prepare_layer_inputs_fn_language_modeling(whole, tokens, layer)


@torch.no_grad()
def _refuse_few_rows(wrapped: PeftModel, batch: dict[str, Tensor], components: int) -> None:
    """PEFT's EVA would wait for ever for a micro-batch with as many inputs as it looks for components."""
    few: list[str] = []
    with ExitStack() as stack:
        for name, layer in lora_layers(wrapped).items():
            stack.callback(layer.register_forward_pre_hook(_noting(name, components, few)).remove)  # type: ignore[attr-defined]
        wrapped(**batch)
    if few:
        raise InputError(
            f"adapter.method: eva looks for {components} components, but {', '.join(few)} has one input a row. Give "
            f"gora.micro_batch_size: {components}, or put it into adapter.exclude."
        )


def _noting(name: str, components: int, few: list[str]) -> Any:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dim() == 2 and len(inputs[0]) < components:
            few.append(name)

    return note
