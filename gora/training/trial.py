"""One step of training that leaves no trace: does the micro-batch fit?"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from gora.adapters.lean import make_lean
from gora.estimate.sizes import next_smaller
from gora.models.checkpointing import recompute_activations
from gora.models.rows_apart import forward
from gora.planning.memory_advice import explained
from gora.planning.sizes import TRAIN
from gora.planning.trial import fits, longest_batch
from gora.planning.workload import workload_of
from gora.recipe.derived import recomputes_activations, training_micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.precision import autocast


def confirm_micro_batch(context: RunContext, model: nn.Module) -> RunContext:
    """Try the micro-batch that was chosen, and smaller ones until one fits in every process.

    An engine that shards base weights is not tried: the model is still whole when this is called.

    Args:
        context: the run.
        model: with its adapter, before an engine has it.

    Raises:
        OutOfMemory: not even one row fits.
    """
    if TRAIN not in context.automatic or context.engine.shards_weights:
        return context
    work = workload_of(context)
    while True:
        rows = training_micro_batch_size(context.recipe.train)
        recompute = recomputes_activations(context.recipe.train)
        needs = work.training(rows, checkpointing=recompute)
        failure = fits(partial(_step, context, model, rows, needs.gradients + needs.optimizer), context.device)
        if not context.world.any(failure is not None):
            return context
        smaller = next_smaller(rows)
        if smaller is None:
            reason = failure or MemoryError("memory ran out in another process")
            raise explained(context, reason, "training", where="in the trial step on the longest row")
        output.warn(f"A micro-batch of the {rows} longest rows does not fit: {smaller} are taken.")
        context = context.with_settings({TRAIN: smaller})


def _step(context: RunContext, model: nn.Module, rows: int, held: int) -> None:
    """Forward and backward pass of the longest rows, beside what a step will hold that is not there yet."""
    room = torch.empty(held if context.device.type == "cuda" else 0, dtype=torch.uint8, device=context.device)
    recompute, training = recomputes_activations(context.recipe.train), model.training
    if recompute:
        recompute_activations(model, True)
    model.train()
    # The adapters compute as they will in training.
    lean = context.fuses and not context.engine.shards_weights and make_lean(model)
    try:
        with nullcontext() if lean else autocast(context.precision, context.device):
            loss: Any = forward(model, longest_batch(context, model, rows), **context.forward_settings).loss
        loss.backward()
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.train(training)
        if recompute:
            recompute_activations(model, False)
        del room


def halved_in_words(context: RunContext) -> str:
    """How to continue with half of the micro-batch; empty for one row."""
    smaller = next_smaller(training_micro_batch_size(context.recipe.train))
    return f" --set {TRAIN}={smaller}" if smaller else ""
