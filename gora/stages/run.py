"""The whole chain: precompute, train, evaluate and, if wanted, merge."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from shlex import quote

from rich.table import Table

from gora.adapters.mergeable import refuse_unmergeable
from gora.adapters.serving import adapter_commands
from gora.disk import free_bytes, size_text
from gora.errors import InputError
from gora.methods import METHODS
from gora.models.device import base_dtype
from gora.models.source import find_model
from gora.models.weight_files import tensor_shapes
from gora.planning.sizes import settle_sizes
from gora.recipe import accumulation_steps
from gora.recipe.derived import leaves_open
from gora.recipe.schema import Recipe
from gora.runs.card import write_card
from gora.runs.context import RunContext
from gora.runs.decisions import as_decided
from gora.runs.folder import RunFolder
from gora.runs.provenance import check_same_settings
from gora.runs.results import is_worse, losses_of, task_results
from gora.runs.state import Mode, RunState
from gora.runtime.console import output
from gora.runtime.progress import clock
from gora.stages.evaluate import closing_job, deciding_task, evaluate_in, unfinished
from gora.stages.merge import merge
from gora.stages.precompute import plan_from_gradients_in, precompute_in
from gora.stages.report import close_with_page
from gora.stages.train import train_in
from gora.training.engine_training import refuse_what_cannot_train
from gora.training.finish import Trained
from gora.training.trackers import refuse_what_cannot_be_watched


def run(
    recipe: Recipe,
    *,
    mode: Mode = "new",
    merge_too: bool = False,
    gradients: Path | None = None,
    allow_code_execution: bool = False,
    allow_weak_sandbox: bool = False,
    trust_remote_code: bool = False,
) -> Trained:
    """Run every stage that the recipe's method needs, and close with its tasks and a summary.

    Args:
        recipe: the recipe.
        mode: `new` expects no run in the folder, `resume` continues it from wherever it was interrupted, `overwrite`
            replaces everything that it left.
        merge_too: also write the merged model to `<output>/merged`.
        gradients: a folder of kept gradients to make the plan from, instead of a gradient pass.
        allow_code_execution: let programs run that the trained model writes for a task.
        allow_weak_sandbox: also where the system lacks walls of the sandbox.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError, GoraError, Interrupted: as the stages do.
    """
    begin = time.monotonic()
    method = METHODS[recipe.adapter.method]
    if merge_too:
        refuse_unmergeable(recipe, find_model(recipe.model, trust_remote_code=trust_remote_code))
    if gradients is not None and not method.needs_plan:
        raise InputError(f"--from-gradients: the method {recipe.adapter.method} makes no plan. Leave it out.")
    with RunContext.open(recipe, command="gora run", mode=mode, trust_remote_code=trust_remote_code) as context:
        progress = context.settle("run", needs_plan=method.needs_plan)
        # What training or a task would refuse is refused before the gradients take their time.
        refuse_what_cannot_train(context.engine, context.device, recipe.adapter.method)
        refuse_what_cannot_be_watched(recipe, context.engine)
        accumulation_steps(recipe.train, context.world.size)
        job = closing_job(
            recipe,
            allow_code_execution=allow_code_execution,
            allow_weak_sandbox=allow_weak_sandbox,
            trust_remote_code=trust_remote_code,
        )
        job.check()
        deciding_task(recipe)
        if leaves_open(recipe):
            with output.logging_to(context.folder.log, "run"):
                context = settle_sizes(context, progress)
        if merge_too and progress.state < RunState.FINISHED:
            _warn_of_merge(context)
        if method.needs_plan and (mode == "overwrite" or progress.state < RunState.PLANNED):
            if gradients is None:
                precompute_in(context)
            else:
                plan_from_gradients_in(context, gradients)
            output.say()
        if mode == "resume" and progress.state == RunState.FINISHED and progress.trained is not None:
            check_same_settings(context.folder, as_decided(context).recipe)
            output.say(f"adapter   {progress.trained} is finished")
            trained = Trained(adapter=progress.trained, losses=losses_of(context.folder))
            if context.world.main:
                write_card(context.folder)
        else:
            trained = train_in(context)
        if (rest := unfinished(job, context.folder, context.world)).tasks:
            output.say()
            evaluate_in(context.folder, rest, context.world)
        if merge_too and context.world.main and not context.folder.merged.exists():
            merge(trained.adapter, context.folder.merged, overwrite=True, trust_remote_code=trust_remote_code)
        context.world.barrier()
        close_with_page(context.folder, context.world)
        with output.logging_to(context.folder.log, "run"):
            output.say(_summary(context.folder, trained, merge_too, time.monotonic() - begin))
            if context.source.causal and trained.adapter == context.folder.adapter and not merge_too:
                for command in adapter_commands(trained.adapter):
                    output.say(f"serve     {command}")
    return trained


def _warn_of_merge(context: RunContext) -> None:
    """The merged model has the tensors of its base, in the type that they have in memory."""
    source, folder = context.source, context.folder
    if not context.world.main:
        return
    width = base_dtype(context.recipe.model.dtype, context.device).itemsize
    needed = sum(prod(shape) for shape in tensor_shapes(source).values()) * width
    if (free := free_bytes(folder.path)) < needed:
        output.warn(
            f"{size_text(free)} are free in {folder.path}, and the merged model takes about {size_text(needed)}. Make "
            "room, or leave out --merge and merge to another disk afterwards."
        )


def _summary(folder: RunFolder, trained: Trained, merged: bool, seconds: float) -> Table:
    table = Table(show_header=False, title=f"Done in {clock(seconds)}", title_justify="left")
    if trained.losses:
        base, final = trained.losses["base"], trained.losses["final"]
        worse = ": worse than its base, see the warning above" if is_worse(final, base) else ""
        table.add_row("evaluation loss", f"{base:.4f} with the base model, {final:.4f} with the adapter{worse}")
    for task, sides in task_results(folder).items():
        figures = sides["trained"]["metrics"] if "trained" in sides else {}
        table.add_row(task, ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    table.add_row("adapter", str(trained.adapter))
    if merged:
        table.add_row("merged model", str(folder.merged))
    table.add_row("metrics, log", f"{folder.metrics}, {folder.log}")
    table.add_row("report", str(folder.page))
    if folder.plan.exists():
        table.add_row("ranks", f"gora inspect-ranks {quote(str(folder.plan))}")
    if not merged and trained.adapter == folder.adapter:
        table.add_row("next", f"gora merge {quote(str(trained.adapter))} --output {quote(str(folder.merged))}")
    return table
