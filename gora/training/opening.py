"""What is trained on which rows, how long, and from where; refused here if it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gora.errors import InputError
from gora.methods import METHODS
from gora.plan import Plan, read_plan
from gora.recipe import accumulation_steps
from gora.runs.context import RunContext
from gora.runs.folder import step_of
from gora.runs.provenance import check_provenance, check_same_base, check_same_rows, plan_differences
from gora.runs.state import Progress
from gora.runtime.console import output
from gora.training.engine_training import refuse_what_cannot_train
from gora.training.saved_state import check_state
from gora.training.schedule import optimizer_steps, refuse_too_few_steps
from gora.training.step_rows import resume_stream
from gora.training.trackers import refuse_what_cannot_be_watched


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What is known before the model is loaded.

    Attributes:
        plan: of methods that need one.
        checkpoint: what training resumes from; None at the first step.
        steps: optimizer steps of the whole run.
    """

    plan: Plan | None
    checkpoint: Path | None
    steps: int

    @property
    def done(self) -> int:
        """Optimizer steps that are behind the run."""
        return step_of(self.checkpoint) if self.checkpoint else 0


def open_training(context: RunContext, progress: Progress) -> Opened:
    """What is trained on which rows, how long, and from where.

    Raises:
        InputError: the engine, the rows, the plan or the checkpoint cannot be used, or not with this recipe.
    """
    recipe, folder, world = context.recipe, context.folder, context.world
    refuse_what_cannot_train(context.engine, context.device, recipe.adapter.method)
    refuse_what_cannot_be_watched(recipe, context.engine)
    checkpoint = progress.checkpoint if context.mode == "resume" else None
    if checkpoint is not None:
        check_provenance(checkpoint, recipe, folder, context.engine, world)
        check_state(checkpoint)
        for line in progress.damage:
            output.warn(f"{line} It is not used.")
        output.say(f"resuming  {checkpoint}")
    elif context.mode == "resume":
        output.say("resuming  there is no checkpoint yet: training begins at the first step")
    plan = _read_plan(context) if METHODS[recipe.adapter.method].needs_plan else None
    if checkpoint is not None:
        check_same_rows(checkpoint, context.data.fingerprint)
        check_same_base(checkpoint, context.base)
        resume_stream(context.data, checkpoint)
    assert context.chosen.layers
    accumulation_steps(recipe.train, world.size)
    steps = optimizer_steps(context.data.per_epoch, recipe.train)
    refuse_too_few_steps(recipe.adapter.method, steps)
    return Opened(plan=plan, checkpoint=checkpoint, steps=steps)


def _read_plan(context: RunContext) -> Plan:
    path = context.folder.plan
    plan = read_plan(path)
    if differences := plan_differences(plan, context.recipe):
        raise InputError(
            f"{path} was made with other settings. Make it again with `gora precompute --overwrite`.", differences
        )
    return plan
