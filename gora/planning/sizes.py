"""What `auto` stands for: micro-batches and activation checkpointing by the estimate, or as an earlier command chose.

A trial pass on the longest rows confirms the sizes before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gora.errors import InputError
from gora.estimate.sizes import divisors
from gora.gradients.storage import read_document
from gora.plan import read_plan
from gora.planning.budget import settle_rank
from gora.planning.workload import Workload, workload_of
from gora.recipe.derived import automatic
from gora.recipe.origins import Origin
from gora.runs.context import RunContext
from gora.runs.provenance import begun_with
from gora.runs.state import Progress
from gora.runtime.console import output

TRAIN, GRADIENTS, RECOMPUTE = "train.micro_batch_size", "gora.micro_batch_size", "train.activation_checkpointing"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Settings of memory.

    Attributes:
        training: rows of a micro-batch of training.
        gradients: rows of a micro-batch of the gradient pass.
        recompute: whether activations are recomputed.
    """

    training: int
    gradients: int
    recompute: bool

    def as_settings(self) -> dict[str, Any]:
        """By key."""
        return {TRAIN: self.training, GRADIENTS: self.gradients, RECOMPUTE: self.recompute}


def settle_sizes(context: RunContext, progress: Progress, *, plan: bool = False) -> RunContext:
    """Put values in the place of every `auto` that is not measured, the same in all processes.

    Args:
        context: the run; its rows are read if the estimate is needed.
        progress: how far the run has come.
        plan: whether training starts from the plan in the folder, which says its own micro-batch.
    """
    context = settle_rank(context)
    wanted = automatic(context.recipe) | context.automatic
    if context.mode == "resume":
        context = context.with_settings(_as_begun(context, progress, wanted))
    if plan and GRADIENTS in wanted and context.folder.plan.exists():
        context = context.with_settings({GRADIENTS: read_plan(context.folder.plan).micro_batch_size})
    if open_still := automatic(context.recipe):
        sizes = _agreed(context, choose_sizes(workload_of(context), context))
        settings = {key: value for key, value in sizes.as_settings().items() if key in open_still}
        origins = dict.fromkeys(settings, Origin("computed", "by the estimate of memory"))
        context = context.with_settings(settings, origins=origins)
        output.say(f"memory    {', '.join(f'{key}: {_said(value)}' for key, value in settings.items())} (auto)")
    return context.with_settings({}, automatic=wanted)


def _as_begun(context: RunContext, progress: Progress, wanted: frozenset[str]) -> dict[str, Any]:
    """What an unfinished run was begun with, where the recipe now leaves that open."""
    begun = begun_with(context.folder, progress.checkpoint)
    path = context.folder.pass_checkpoint_of(context.world.index, context.world.size)
    if not begun and path.exists():
        try:
            begun = {GRADIENTS: read_document(path)["identity"]["micro_batch_size"]}
        except (InputError, KeyError):
            return {}
    follows = {GRADIENTS} if context.recipe.gora.micro_batch_size is None else set()
    return {key: value for key, value in begun.items() if key in wanted | follows}


def choose_sizes(work: Workload, context: RunContext) -> Sizes:
    """The largest micro-batches that fit, without recomputing if any fits without."""
    train = context.recipe.train
    choices = [train.activation_checkpointing] if train.activation_checkpointing != "auto" else [False, True]
    sizes = None
    for recompute in choices:
        sizes = _choose(work, context, bool(recompute))
        if sizes is not None:
            return sizes
    smallest = train.micro_batch_size if train.micro_batch_size != "auto" else 1
    asked = context.recipe.gora.micro_batch_size or train.micro_batch_size
    return Sizes(training=smallest, gradients=1 if asked == "auto" else asked, recompute=bool(choices[-1]))


def _choose(work: Workload, context: RunContext, recompute: bool) -> Sizes | None:
    """The sizes with or without recomputing; None where not even one row fits."""
    recipe, processes = context.recipe, context.processes
    training: int | None
    if recipe.train.micro_batch_size == "auto":
        sizes = work.training_sizes(processes)
        training = work.largest(lambda rows: work.training(rows, checkpointing=recompute), sizes)
    else:
        training = recipe.train.micro_batch_size
        if work.training(training, checkpointing=recompute).total > work.limit:
            training = None
    if training is None:
        return None
    if GRADIENTS in automatic(recipe):
        # Sums stay on the device if any micro-batch leaves room for them: they are slow to reach elsewhere.
        near = [rows for rows in divisors(training) if not work.gradients(rows, checkpointing=recompute).host]
        choices = near or divisors(training)
        gradients = work.largest(lambda rows: work.gradients(rows, checkpointing=recompute), choices)
    else:
        gradients = recipe.gora.micro_batch_size or training  # type: ignore[assignment]
    return None if gradients is None else Sizes(training=training, gradients=gradients, recompute=recompute)


def _agreed(context: RunContext, sizes: Sizes) -> Sizes:
    """The least that any process chose: they compute in step."""
    told = context.world.gather([sizes.training, sizes.gradients, sizes.recompute])
    return Sizes(
        training=min(each[0] for each in told),
        gradients=min(each[1] for each in told),
        recompute=any(each[2] for each in told),
    )


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
