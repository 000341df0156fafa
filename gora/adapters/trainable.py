"""What method, engine and checkpoint allow together: asked before rows are read."""

from __future__ import annotations

import torch

from gora.errors import InputError
from gora.methods import METHODS
from gora.models.quantization import quantization_of, refuse_untrainable_format
from gora.models.source import Source
from gora.recipe.schema import Recipe
from gora.runtime.engine import Engine
from gora.runtime.precision import Precision


def refuse_untrainable(recipe: Recipe, source: Source, engine: Engine) -> None:
    """Refuse what would fail once the model is loaded.

    Raises:
        InputError: the checkpoint's format cannot be trained here, or goes with neither method, engine nor head; or new
            tokens or experts cannot be trained with them.
    """
    refuse_untrainable_format(recipe.model, source.config)
    kind = quantization_of(recipe.model, source)
    if kind is not None:
        _refuse_quantized(recipe, source, engine, kind)
    if recipe.model.new_tokens:
        _refuse_new_tokens(recipe, engine)
    if recipe.adapter.experts and engine.shards_weights:
        raise InputError(
            f"adapter.experts: fused experts cannot be adapted while {engine.name} shards weights. Give ddp or zero2, "
            "or set it to false."
        )


def refuse_mixed_types(recipe: Recipe, precision: Precision, dtype: torch.dtype) -> None:
    """Refuse to train weights in float32 among others in bfloat16 where nothing brings the two together.

    Args:
        recipe: the recipe.
        precision: of the passes.
        dtype: of the base weights in memory.

    Raises:
        InputError: with what to set.
    """
    method = METHODS[recipe.adapter.method]
    if method.saved_as == "model" and precision == "fp32" and dtype != torch.float32:
        raise InputError(
            f"adapter.method: {method.name} trains weights in float32, and the rest of the model would be in "
            f"{str(dtype).removeprefix('torch.')}, which float32 arithmetic cannot mix. Give model.dtype: float32, or "
            "train.precision: bf16."
        )


def _refuse_quantized(recipe: Recipe, source: Source, engine: Engine, kind: str) -> None:
    method = METHODS[recipe.adapter.method]
    if engine.shards_weights:
        raise InputError(
            f"distributed: {engine.name} shards base weights, which {kind} ones cannot be. Give ddp or zero2, or a "
            "base in whole weights."
        )
    if source.head == "classification":
        raise InputError(f"model.head: classification needs a base in whole weights; this one is in {kind}.")
    if method.saved_as == "model":
        raise InputError(f"adapter.method: {method.name} trains the weights themselves, which cannot be in {kind}.")
    if method.moves_weights:
        raise InputError(
            f"adapter.method: {method.name} moves a part of the base weights into the adapter, which {kind} ones do "
            "not allow. Give gora or lora, or a base in whole weights."
        )


def _refuse_new_tokens(recipe: Recipe, engine: Engine) -> None:
    method = METHODS[recipe.adapter.method]
    if method.saved_as == "model":
        raise InputError(
            f"model.new_tokens: {method.title} leaves the embeddings alone. Give a method with an adapter."
        )
    if engine.shards_weights:
        raise InputError(
            f"model.new_tokens: PEFT cannot train them while {engine.name} shards weights. Give ddp or zero2."
        )
