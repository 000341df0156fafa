"""The second stage: train the adapter that the plan describes, and save it."""

from __future__ import annotations

from gora.evaluation.on_the_way import figure_on_the_way
from gora.files import delete
from gora.methods import METHODS
from gora.planning.memory_advice import explaining_memory
from gora.planning.sizes import settle_sizes
from gora.probing.rate import settle_rate
from gora.recipe import accumulation_steps
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.decisions import as_decided, record_recipe
from gora.runs.replacing import clear_training
from gora.runs.state import Mode, RunState
from gora.runtime.console import output
from gora.stages.evaluate import deciding_task
from gora.stages.report import close_with_page
from gora.training.engine_training import release_engine
from gora.training.finish import Trained, finish, finish_later
from gora.training.groups import lr_ratio_of
from gora.training.loop import fit
from gora.training.opening import Opened, open_training
from gora.training.room import check_room
from gora.training.start import Wrapped, keep_initial, wrap_model
from gora.training.trial import confirm_micro_batch
from gora.training.worse import start_warning


def train(recipe: Recipe, *, mode: Mode = "new", trust_remote_code: bool = False) -> Trained:
    """Train the adapter and write `<output>/adapter`.

    Args:
        recipe: the recipe.
        mode: `new` expects no earlier training in the folder, `resume` continues it from its latest checkpoint,
            `overwrite` replaces it.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the recipe, the rows, the plan or the run folder cannot be used.
        Interrupted: a signal stopped the run, and a checkpoint was saved.
        GoraError: training failed.
    """
    with RunContext.open(recipe, command="gora train", mode=mode, trust_remote_code=trust_remote_code) as context:
        trained = train_in(context)
        close_with_page(context.folder, context.world)
        return trained


def train_in(context: RunContext) -> Trained:
    """As `train`, in a run that is open."""
    method = METHODS[context.recipe.adapter.method]
    progress = context.settle("train", needs_plan=method.needs_plan)
    deciding = deciding_task(context.recipe)
    if context.mode == "resume" and progress.state == RunState.TRAINED:
        return finish_later(as_decided(settle_sizes(context, progress)), progress)
    with output.logging_to(context.folder.log, "train"):
        # Refused before the micro-batch is looked for, which takes time.
        accumulation_steps(context.recipe.train, context.world.size)
        context = as_decided(settle_sizes(context, progress, plan=method.needs_plan))
        opened = open_training(context, progress)
        with explaining_memory(context, "training", "while the model was loaded and adapted"):
            start = _start(context, opened)
        context = _settle_rate(_confirm(context, start), start, opened.steps)
        figure = figure_on_the_way(context, start.model, *deciding) if deciding else None
        fitted = fit(context, opened, start, figure)
        try:
            with explaining_memory(context, "training", "in the evaluation after it"):
                return finish(context, start, fitted)
        finally:
            release_engine(fitted.trainer)


def _start(context: RunContext, opened: Opened) -> Wrapped:
    """The model with its adapter, and a folder that holds nothing of an earlier training."""
    folder, resumed = context.folder, opened.checkpoint is not None
    start = wrap_model(context, opened.plan, steps=opened.steps, resumed=resumed)
    if warning := start_warning(start.losses, context.recipe, gamma=opened.plan.gamma if opened.plan else None):
        output.warn(warning)
    left = opened.steps - opened.done
    context.world.from_main(lambda: check_room(folder, start.model, context.recipe.train, left))
    if not resumed and context.world.main:
        clear_training(folder)
        if opened.plan is None:
            delete(folder.plan)
        record_recipe(folder, context.recipe)
        if start.initial:
            keep_initial(folder, start.initial)
    return start


def _confirm(context: RunContext, start: Wrapped) -> RunContext:
    """Try the micro-batch that gora chose."""
    confirmed = confirm_micro_batch(context, start.model)
    if confirmed is not context and context.world.main:
        record_recipe(context.folder, confirmed.recipe)
    return confirmed


def _settle_rate(context: RunContext, start: Wrapped, steps: int) -> RunContext:
    """Find the learning rate that is left to gora."""
    with explaining_memory(context, "training", "while a learning rate was looked for"):
        settled = settle_rate(context, start.model, lr_ratio_of(context.recipe), steps=steps)
    if settled is not context and context.world.main:
        record_recipe(context.folder, settled.recipe)
    return settled
