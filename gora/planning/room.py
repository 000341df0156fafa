"""The gradient pass within the memory that there is: micro-batches that gora chose are made smaller if they must be."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from gora.estimate.sizes import next_smaller
from gora.files import delete
from gora.models.experts import Target
from gora.plan import ModelIdentity
from gora.planning.gradient_pass import Collected, collect_gradients
from gora.planning.memory_advice import explained
from gora.planning.sizes import GRADIENTS
from gora.planning.trial import try_gradient_pass
from gora.recipe.derived import micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.out_of_memory import is_out_of_memory, release_memory


def collect_within_memory(
    context: RunContext,
    model: nn.Module,
    targets: Mapping[str, Target],
    identity: ModelIdentity,
    *,
    low_memory: bool,
) -> tuple[RunContext, Collected]:
    """As `collect_gradients`; also returns the run with the micro-batch that was used.

    In one process a pass that runs out of memory is started over with half of the micro-batch. Several processes agree
    on a size beforehand; a base that is shared out is not tried.

    Raises:
        OutOfMemory: it does not fit, with what to change.
    """
    if GRADIENTS in context.automatic and not context.engine.shards_weights:
        context = _confirmed(context, model, targets)
    while True:
        try:
            return context, collect_gradients(context, model, targets, identity, low_memory=low_memory)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)
        release_memory()
        if GRADIENTS not in context.automatic or context.world.size > 1:
            raise explained(context, failure, "gradients")
        context = _halved(context, failure)
        # Its sums are of the larger micro-batches.
        delete(context.folder.pass_checkpoint)


def _confirmed(context: RunContext, model: nn.Module, targets: Mapping[str, Target]) -> RunContext:
    while True:
        failure = try_gradient_pass(context, model, targets)
        if not context.world.any(failure is not None):
            return context
        context = _halved(context, failure or MemoryError("memory ran out in another process"))


def _halved(context: RunContext, failure: BaseException) -> RunContext:
    rows = micro_batch_size(context.recipe)
    smaller = next_smaller(rows)
    if smaller is None:
        raise explained(context, failure, "gradients", where="with one row at a time") from None
    output.warn(f"Micro-batches of {rows} rows do not fit in the gradient pass: {smaller} are taken.")
    return context.with_settings({GRADIENTS: smaller})
