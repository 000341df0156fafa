"""How long training will take: measured on a few blocks with random weights, and carried over to all of them."""

from __future__ import annotations

import copy
import random
import statistics
import time
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.checkpointing import recompute_activations
from gora.models.device import base_dtype
from gora.models.source import Source
from gora.recipe.derived import recomputes_activations, reference_rank, training_micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.precision import autocast

_FEW, _MORE = 1, 3
_WARM_UPS, _TIMED = 2, 5


def seconds_of_micro_batch(context: RunContext) -> float | None:
    """Forward and backward pass of an average micro-batch of training, without loading weights.

    The time grows with the blocks by the same amount for each: two small models tell it.

    Returns:
        Seconds; None for a model that is not made of `num_hidden_layers` blocks, or whose weights are packed.
    """
    source, layers = context.source, getattr(context.source.config, "num_hidden_layers", None)
    if not source.causal or not isinstance(layers, int) or context.recipe.model.quantization:
        return None
    rows = training_micro_batch_size(context.recipe.train)
    ids = torch.randint(10, (rows, mean_width(context.data.train.lengths, rows)), device=context.device)
    few, more = (_seconds(context, source, count, ids) for count in (_FEW, _MORE))
    return few + (layers - _FEW) * (more - few) / (_MORE - _FEW)


def mean_width(lengths: Any, rows: int) -> int:
    """Tokens of the longest row of a micro-batch, on average over random micro-batches."""
    order = list(lengths)
    random.Random(0).shuffle(order)
    batches = [order[start : start + rows] for start in range(0, len(order), rows)][:1000]
    return round(statistics.fmean(max(batch) for batch in batches))


def _seconds(context: RunContext, source: Source, layers: int, ids: torch.Tensor) -> float:
    model = _small_model(context, source, layers)
    if recomputes_activations(context.recipe.train):
        recompute_activations(model, True)
    model.train()
    taken = []
    for _ in range(_WARM_UPS + _TIMED):
        _wait(context.device)
        start = time.perf_counter()
        with autocast(context.precision, context.device):
            loss: Any = model(input_ids=ids, labels=ids).loss
        loss.backward()
        _wait(context.device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[_WARM_UPS:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _small_model(context: RunContext, source: Source, layers: int) -> nn.Module:
    config, adapter = copy.deepcopy(source.config), context.recipe.adapter
    config.num_hidden_layers = layers
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        # Where it has no setter, it follows the number of layers.
        with suppress(AttributeError):
            config.layer_types = (kinds * layers)[:layers]
    with torch.device(context.device):
        model = source.family.from_config(
            config, dtype=base_dtype(context.recipe.model.dtype, context.device), trust_remote_code=False
        ).requires_grad_(False)
    settings = AdapterSettings(rank=reference_rank(adapter), alpha=adapter.alpha, dropout=adapter.dropout)
    there = dict(model.named_modules())
    targets = {name: there[name] for name in context.chosen.layers if name in there}
    return METHODS["lora"].wrap(model, Wrapping(targets=targets, settings=settings))
