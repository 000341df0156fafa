"""A pass over the longest rows that counts for nothing: does the micro-batch fit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gora.gradients.attach import Attachment
from gora.gradients.probe import Probe
from gora.models.checkpointing import recomputing_activations
from gora.models.experts import Target, matrices_of
from gora.models.rows_apart import keeps_apart
from gora.planning.micro_batches import MicroBatches
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runtime.out_of_memory import is_out_of_memory, release_memory


def fits(attempt: Callable[[], object], device: torch.device) -> BaseException | None:
    """Run something that may need too much memory; random state is as before afterwards.

    Returns:
        The error, if memory ran out.
    """
    failure = None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Its frames hold what filled the memory.
            failure = error.with_traceback(None)
    release_memory()
    return failure


def try_gradient_pass(context: RunContext, model: nn.Module, targets: Mapping[str, Target]) -> BaseException | None:
    """Run the longest micro-batch of the gradient pass without keeping anything of it."""

    def attempt() -> None:
        batches, attachment = MicroBatches(context, model), Attachment(model, matrices_of(targets))
        attachment.receiver = Probe(context.device)
        with recomputing_activations(model, recomputes_activations(context.recipe.train)), attachment.attached():
            context.loss_of(model)(batches.heaviest()).sum().backward()

    return fits(attempt, context.device)


def longest_batch(context: RunContext, model: nn.Module, rows: int) -> dict[str, Any]:
    """The most that a micro-batch of training can be, on the device.

    The longest rows; where they are padded, the shortest in place of the last of them, for a mask.
    """
    examples = context.data.train
    order = sorted(range(len(examples)), key=lambda index: -examples.lengths[index])
    chosen = order[:rows] if keeps_apart(model) or rows == 1 else [*order[: rows - 1], order[-1]]
    return context.move(context.collate(model, [examples[index] for index in chosen]))
