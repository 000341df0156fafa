"""The sums of an unfinished gradient pass: where they lie, and what a later process has to do as the earlier did."""

from __future__ import annotations

from gora.errors import InputError, Interrupted
from gora.gradients.checkpoint import PassCheckpoint
from gora.gradients.collect import Pace
from gora.gradients.storage import read_document
from gora.plan import ModelIdentity
from gora.recipe.derived import gradient_steps, micro_batch_size
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runtime.interrupt import StopRequest


def saved_as_shards(context: RunContext) -> bool | None:
    """Whether the processes of an unfinished pass held shares of the sums; None where there is none.

    Free memory decides at first. What is saved is of one kind, so that the pass goes on with it whatever is free now.

    Raises:
        InputError: the pass had another number of processes, or what it has saved cannot be read.
    """
    path = context.folder.pass_checkpoint_of(context.world.index, context.world.size)
    sums = read_document(path).get("identity", {}).get("sums") if path.exists() else None
    # A process may have been killed before it had saved anything.
    known = [each for each in context.world.gather(sums) if each is not None]
    return known[0] == "sharded" if known else None


def pass_checkpoint(
    context: RunContext,
    model: ModelIdentity,
    request: StopRequest,
    pace: Pace,
    *,
    sharded: bool,
    low_memory: bool,
) -> PassCheckpoint:
    """What saves the sums of a pass, and brings back those of an unfinished one."""
    world, steps, folder = context.world, gradient_steps(context.recipe), context.folder
    identity = {
        "model": model.config,
        "weights": model.weights,
        "data": context.data.fingerprint,
        **_steps(context.recipe),
        "micro_batch_size": micro_batch_size(context.recipe),
        "seed": context.recipe.seed,
        "precision": context.precision,
        "low_memory": low_memory,
        "processes": world.size,
        "sums": "sharded" if sharded else "whole",
        "distributed": "base weights shared out" if context.engine.shards_weights else "base weights whole",
    }
    in_step = pace.agree is not bool

    def interrupt(number: int, cursor: int) -> None:
        done = min(cursor * world.size, steps)
        about = "about " if world.size > 1 else ""
        kept = f"{folder.pass_checkpoint} holds the sums of {about}{done} of {steps} micro-batches"
        raise Interrupted(number, f"{kept}; add --resume to continue from them.")

    def stop() -> int | None:
        # Processes in step stop together, also where the signal has not yet reached all of them.
        return world.most(request.number or 0) or None if in_step else request.number

    checkpoint = PassCheckpoint(
        folder.pass_checkpoint_of(world.index, world.size), identity, stop, interrupt, context.device
    )
    if in_step and len(set(world.gather(checkpoint.saved_rounds()))) > 1:
        raise InputError(
            f"{folder.pass_checkpoint} was being written when the run ended, and is incomplete. Add --overwrite."
        )
    return checkpoint


def _steps(recipe: Recipe) -> dict[str, object]:
    """How many micro-batches are summed, and what decides when it is enough."""
    settings = recipe.gora
    if settings.steps != "auto":
        return {"steps": settings.steps}
    decided_by = ("settled", "tolerance", "importance")
    ranks = ("allocation", "temperature", "budget", "rank_min", "rank_max")
    watched = decided_by + (ranks if settings.settled == "start" else ())
    adapter = recipe.adapter
    budget = {} if adapter.parameters is None else {"parameters": adapter.parameters}
    rank = {"rank": adapter.rank, **budget} if settings.settled == "start" else {}
    return {"steps": "auto", **{name: getattr(settings, name) for name in watched}, **rank}
