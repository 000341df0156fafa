"""Trained embeddings of single tokens beside an adapter: PEFT's `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import TrainableTokensWrapper, set_additional_trainable_modules
from transformers import PreTrainedModel

from gora.models.new_tokens import grow_embeddings, token_layers

KEY = "trainable_token_indices"
_ADAPTER = "default"


def train_tokens(wrapped: PeftModel, ids: Sequence[int]) -> None:
    """Let an adapter also train the embeddings of tokens, in float32; those of a tied head are the same ones.

    Args:
        wrapped: the model with its adapter.
        ids: the tokens, all within the embeddings.
    """
    model: Any = wrapped.get_base_model()
    config: Any = wrapped.peft_config[_ADAPTER]
    config.trainable_token_indices = {name: list(ids) for name in token_layers(model)}
    set_additional_trainable_modules(
        model=model, peft_config=config, model_config=model.config.to_dict(), adapter_name=_ADAPTER
    )
    for layer in _layers(wrapped):
        values: Any = layer.token_adapter.trainable_tokens_delta
        values[_ADAPTER].data = values[_ADAPTER].data.float()


def make_room(model: PreTrainedModel, config: PeftConfig) -> None:
    """Grow a base model's embeddings to the tokens that an adapter holds."""
    ids = token_ids(config)
    if ids:
        grow_embeddings(model, max(ids) + 1)


def token_ids(config: PeftConfig) -> list[int]:
    """The tokens whose embeddings an adapter holds, in order."""
    held = getattr(config, KEY, None) or []
    return sorted({number for ids in (held.values() if isinstance(held, dict) else [held]) for number in ids})


@torch.no_grad()
def fold_tokens(wrapped: PeftModel) -> None:
    """Write the trained embeddings into the base model's own."""
    for layer in _layers(wrapped):
        tokens: Any = layer.token_adapter
        for name in tokens.active_adapters:
            weight = tokens.get_base_layer().weight
            weight[tokens.token_indices[name]] = tokens.trainable_tokens_delta[name].to(weight)


def _layers(wrapped: PeftModel) -> Iterator[TrainableTokensWrapper]:
    return (module for module in wrapped.modules() if isinstance(module, TrainableTokensWrapper))
