"""The base model of a run: loaded, told of the rows, tried out, and sped up where it is seen to compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gora.errors import InputError
from gora.models.device import computes_bfloat16_slowly
from gora.models.fingerprint import config_fingerprint
from gora.models.head import head_modules
from gora.models.kernels import use_kernels
from gora.models.load import load_model
from gora.models.new_tokens import grow_embeddings, refuse_untrainable_tokens
from gora.models.quantization import quantization_of
from gora.models.rows_apart import set_apart
from gora.models.trial import rounding, row_to_try, try_out
from gora.plan import ModelIdentity
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.phases import phases
from gora.runtime.precision import autocast


@phases.within("model")
def load_base_model(context: RunContext) -> PreTrainedModel:
    """Load the base model, frozen; what it lacks of a classifier's head is the same at every call.

    Raises:
        InputError: it cannot be loaded, or cannot take the rows.
    """
    with output.terminal.status("loading the model"):
        model = load_model(context.recipe.model, context.source, context.device, seed=context.recipe.seed)
    if context.new_tokens:
        refuse_untrainable_tokens(model)
        grow_embeddings(model, max(context.new_tokens) + 1)
    context.inputs.fit(model)
    _try_out(context, model)
    speed_up(context, model)
    _say_loaded(context, model)
    return model


def identify(context: RunContext, model: PreTrainedModel) -> ModelIdentity:
    """Fingerprints of the architecture and of all weights."""
    note = context.base.note
    return ModelIdentity(
        name=context.recipe.model.name,
        config=config_fingerprint(model.config),
        weights=note.fingerprint,
        tensors=note.tensors,
    )


def speed_up(context: RunContext, model: PreTrainedModel) -> None:
    """Rows end to end, and logits where they are needed: as far as the model is seen to compute the same."""
    packing, rows = context.recipe.data.packing, context.data.train
    arithmetic = autocast(context.precision, context.device)
    ids = [rows[index]["input_ids"] for index in range(min(3, len(rows)))] if context.source.causal else []
    if packing != "none" and context.inputs.of_text:
        reason = set_apart(model, ids, arithmetic) if context.source.causal else "it is not a causal language model"
        if reason and packing != "auto":
            raise InputError(
                f"data.packing: {packing} is not possible with this model: {reason}. Give `auto` or `none`."
            )
        output.log(f"packing   not with this model: {reason}" if reason else "packing   seen to keep rows apart")
    if context.fuses and context.source.causal and not context.engine.shards_weights:
        for line in use_kernels(model, context.recipe.train.kernels, ids, arithmetic):
            output.log(line)


def _say_loaded(context: RunContext, model: PreTrainedModel) -> None:
    dtype = str(model.dtype).removeprefix("torch.")
    kernel = model.config._attn_implementation
    size = f"{model.num_parameters():,} parameters in {dtype} on {context.device}"
    output.say(f"loaded    {size}, attention {kernel}, computing in {context.precision}")
    if model.dtype == torch.bfloat16 and computes_bfloat16_slowly(context.device):
        output.warn("This processor is many times slower in bfloat16 than in float32. Add --set model.dtype=float32.")
    if head := head_modules(model):
        parameters = sum(value.numel() for module in head.values() for value in module.parameters())
        labels = len(context.recipe.data.choices or ())
        output.say(f"head      {', '.join(head)}: {labels} labels, {parameters:,} parameters, trained in full")


def _try_out(context: RunContext, model: PreTrainedModel) -> None:
    """One row's loss, so that a model that computes something else is refused before it is trained."""

    def forward(batch: Mapping[str, Tensor]) -> Any:
        with autocast(context.precision, context.device):
            return model(**batch, **context.forward_settings)

    exact = context.precision == "fp32" and quantization_of(context.recipe.model, context.source) is None
    for remark in try_out(
        context.recipe.model.name,
        model,
        forward,
        row_to_try_out(context),
        padding=context.inputs.padding,
        tolerance=rounding(model.dtype if exact else torch.bfloat16),
    ):
        output.warn_once(remark)


def row_to_try_out(context: RunContext) -> dict[str, Tensor]:
    """A micro-batch of one short row of text, or of one image, on the device."""
    rows = context.data.train
    return context.move(context.collator([rows[row_to_try(rows.lengths)]]))
