"""The whole chain: precompute, train, evaluate and, if wanted, merge."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote

from rich.table import Table

from gora.errors import InputError
from gora.methods import METHODS
from gora.models.load import default_device
from gora.recipe import accumulation_steps
from gora.recipe.schema import Recipe
from gora.runs.finish import is_finished, losses_of
from gora.runs.folder import RunFolder
from gora.runs.results import read_results
from gora.runs.setup import begin
from gora.runtime.console import output
from gora.runtime.progress import clock
from gora.stages.evaluate import closing_job, evaluate, unfinished
from gora.stages.merge import merge
from gora.stages.precompute import plan_again, precompute
from gora.stages.train import Trained, train
from gora.training.engine_training import refuse_what_cannot_train


def run(
    recipe: Recipe,
    *,
    merge_too: bool = False,
    gradients: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_code_execution: bool = False,
    trust_remote_code: bool = False,
) -> Trained:
    """Run every stage that the recipe's method needs, and close with its tasks and a summary.

    Args:
        recipe: the recipe.
        merge_too: also write the merged model to `<output>/merged`.
        gradients: a folder of kept gradients to make the plan from, instead of a gradient pass.
        resume: keep the plan and go on from the newest checkpoint of an interrupted run.
        overwrite: replace everything that an earlier run left in the folder.
        allow_code_execution: let programs run that the trained model writes for a task.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError, GoraError, Interrupted: as the stages do.
    """
    start = time.monotonic()
    if merge_too and recipe.adapter.method == "full":
        raise InputError("--merge: full fine-tuning leaves a whole model, there is no adapter to merge.")
    world, engine = begin(recipe)
    folder = RunFolder.of(recipe.output)
    _check_folder(folder, resume, overwrite)
    # What training would refuse is refused before the gradients take their time.
    refuse_what_cannot_train(engine, default_device(), recipe.adapter.method)
    accumulation_steps(recipe.train, world.size)
    job = closing_job(recipe, allow_code_execution=allow_code_execution, trust_remote_code=trust_remote_code)
    job.check()
    needs_plan = METHODS[recipe.adapter.method].needs_plan
    if gradients is not None and not needs_plan:
        raise InputError(f"--from-gradients: the method {recipe.adapter.method} makes no plan. Leave it out.")
    if needs_plan and not (resume and folder.plan.exists()):
        if gradients is None:
            precompute(recipe, resume=resume, overwrite=not resume, trust_remote_code=trust_remote_code)
        elif world.main:
            plan_again(recipe, gradients, overwrite=not resume)
        world.barrier()
        output.say()
    if resume and folder.trained and is_finished(folder, recipe):
        output.say(f"adapter   {folder.trained} is finished")
        trained = Trained(folder.trained, losses_of(folder), 0, 0.0)
    else:
        trained = train(recipe, resume=resume, overwrite=not resume, trust_remote_code=trust_remote_code)
    if (rest := unfinished(job, folder, world)).tasks:
        output.say()
        evaluate(str(folder.path), rest)
    if merge_too and world.main and not folder.merged.exists():
        merge(trained.adapter, folder.merged, overwrite=True, trust_remote_code=trust_remote_code)
    world.barrier()
    with output.logging_to(folder.log, "run"):
        output.say(_summary(folder, trained, merge_too, time.monotonic() - start))
    return trained


def _check_folder(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume goes on with an earlier run and --overwrite deletes it: give one of the two.")
    if not resume and not overwrite:
        how = "Add --resume to go on with it, --overwrite to replace it, or give another --set output=FOLDER."
        folder.refuse_earlier_run(folder.plan, folder.pass_checkpoint, folder.adapter, folder.model, how=how)


def _summary(folder: RunFolder, trained: Trained, merged: bool, seconds: float) -> Table:
    table = Table(show_header=False, title=f"Done in {clock(seconds)}", title_justify="left")
    if trained.losses:
        base, final = trained.losses["base"], trained.losses["final"]
        table.add_row("evaluation loss", f"{base:.4f} with the base model, {final:.4f} with the adapter")
    for task, sides in read_results(folder.results).items():
        figures = sides["trained"]["metrics"] if "trained" in sides else {}
        table.add_row(task, ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    table.add_row("adapter", str(trained.adapter))
    if merged:
        table.add_row("merged model", str(folder.merged))
    table.add_row("metrics, log", f"{folder.metrics}, {folder.log}")
    if folder.plan.exists():
        table.add_row("ranks", f"gora inspect-ranks {quote(str(folder.plan))}")
    if not merged and trained.adapter == folder.adapter:
        table.add_row("next", f"gora merge {quote(str(trained.adapter))} --output {quote(str(folder.merged))}")
    return table
