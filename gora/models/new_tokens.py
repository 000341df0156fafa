"""Embeddings of tokens that a model has not met yet: room for them, and the layers in which they are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gora.errors import InputError


def embedding_rows(model: nn.Module) -> int | None:
    """How many tokens the model has embeddings for; None where it has no table of them: it hashes characters, or sees
    images."""
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    weight = getattr(embeddings, "weight", None)
    return None if weight is None else int(weight.shape[0])


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Give a frozen model embeddings for at least so many tokens; those that are new are the mean of all others.

    The mean is taken in float64 on the CPU, so that the same base always grows to the same model.
    """
    known = embedding_rows(model)
    if known is None or rows <= known:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.requires_grad_(False)
    with torch.no_grad():
        for module in token_layers(model).values():
            weight: Any = module.weight
            weight[known:] = weight[:known].double().cpu().mean(dim=0).to(weight)


def token_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with one row for each token, by name: the input embeddings and, where it is not tied, the head."""
    layers = [model.get_input_embeddings(), getattr(model, "get_output_embeddings", lambda: None)()]  # type: ignore[operator]
    names = {id(module): name for name, module in model.named_modules()}
    kept: dict[str, nn.Module] = {}
    for layer in layers:
        if layer is not None and all(layer.weight is not other.weight for other in kept.values()):
            kept[names[id(layer)]] = layer
    return kept


def refuse_untrainable_tokens(model: PreTrainedModel) -> None:
    """Refuse a model without embeddings of its tokens, and one whose output layer adds a bias.

    PEFT leaves that bias out where rows of the layer are trained.

    Raises:
        InputError: it is one.
    """
    if embedding_rows(model) is None:
        raise InputError("model.new_tokens: this model has no embeddings of single tokens, which could be trained.")
    head: Any = model.get_output_embeddings()
    if head is not None and getattr(head, "bias", None) is not None:
        raise InputError("model.new_tokens: this model's output layer has a bias, with which PEFT cannot train tokens.")


def without_new_rows(model: PreTrainedModel, rows: int | None) -> Callable[[str, Tensor], Tensor]:
    """What a weight was before the model grew.

    Args:
        model: not wrapped.
        rows: of the embeddings of the checkpoint; None where they have not grown.
    """
    grown = {f"{name}.weight" for name in token_layers(model)} if rows is not None else set()
    return lambda name, weight: weight[:rows] if name in grown else weight
