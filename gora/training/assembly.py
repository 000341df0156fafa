"""Assemble the Trainer of a run, with the callbacks that report, save, stop and watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gora.methods import METHODS
from gora.models.rows_apart import keeps_apart
from gora.planning.sizes import TRAIN
from gora.recipe.derived import training_micro_batch_size
from gora.runs.context import RunContext
from gora.runs.decisions import record_recipe
from gora.runs.loss import evaluate_sources, not_finite_rows
from gora.runs.provenance import provenance_of
from gora.runtime.console import output
from gora.runtime.interrupt import StopRequest
from gora.runtime.memory import reset_peak
from gora.training.callbacks import Report, SaveAndLog, StopOrSave
from gora.training.course import Course
from gora.training.engine_training import check_engine
from gora.training.groups import lr_ratio_of, parameter_groups
from gora.training.keeping import Figure, KeepBest
from gora.training.layout import Layout, StepLayout, choose_layout, padding_by_length
from gora.training.metrics import Metrics
from gora.training.opening import Opened
from gora.training.samples import Samples, first_prompts
from gora.training.schedule import warmup_steps
from gora.training.skipping import SkipNotFinite, StepRows
from gora.training.start import Wrapped
from gora.training.step_rows import RunSteps, steps_of
from gora.training.trainer import GoraTrainer
from gora.training.worse import CompareWithBase


def make_trainer(
    context: RunContext, opened: Opened, start: Wrapped, request: StopRequest, figure: Figure | None = None
) -> tuple[GoraTrainer, Report, SkipNotFinite]:
    """The Trainer with its callbacks, of which the caller needs the report and the guard against lost steps.

    Args:
        context: rows, engine and folder; its recipe's micro-batch and learning rate are settled.
        opened: what is trained, how long and from where.
        start: the model with its adapter.
        request: set by a signal, upon which the loop stops between two steps.
        figure: the name and value of a task's figure by which evaluations are compared; None compares their losses.
    """
    recipe, world, plan = context.recipe, context.world, opened.plan
    settings, method = recipe.train, METHODS[recipe.adapter.method]
    provenance = provenance_of(recipe, context.folder, context.data.fingerprint, context.base.note, world)
    layout = _layout(context, start.model, opened)
    groups = parameter_groups(start.model, settings, lr_ratio_of(recipe), method.parts)
    metrics = Metrics(context.folder.metrics, opened.done, write=world.main)
    course = Course.read(opened.checkpoint) if opened.checkpoint else Course()
    report = Report(output, metrics, groups, context.engine, unit=context.data.train.unit)
    reset_peak()
    steps_of_run = steps_of(context.data, settings.batch_size, recipe.seed, opened.steps)
    trainer = GoraTrainer(
        start.model,
        context,
        steps=opened.steps,
        steps_of_run=steps_of_run,
        layout=layout,
        method=method,
        lr_ratio=lr_ratio_of(recipe),
        all_used=plan is not None and all(module.gradient_norm > 0 for module in plan.adapted),
        evaluate_loss=(lambda: evaluate_sources(start.model, context)) if context.data.eval else None,
        provenance=provenance,
        course=course,
        halved=_halving(context, provenance),
    )
    guard = SkipNotFinite(
        settings=settings,
        world=world,
        measure=trainer.measure,
        rows=_step_rows(context, start.model, steps_of_run),
        course=course,
        since_log=trainer.since_log,
        output=output,
        metrics=metrics,
    )
    # These ask the trainer that they are added to.
    report.check = lambda: check_engine(trainer, context.engine, world)
    report.lap = trainer.pace.lap
    stops = (StopOrSave(request, world, settings.save_minutes), guard)
    worse = CompareWithBase(start.losses, course, recipe, output)
    keep = KeepBest(
        start.model, settings, course, context.folder.best, output, world=world, metrics=metrics, figure=figure
    )
    watching = [keep, *_samples(context, start, opened.done)] if context.data.eval else []
    for callback in (*method.callbacks(start.model), report, SaveAndLog(settings), *stops, worse, *watching):
        trainer.add_callback(callback)
    return trainer, report, guard


def _samples(context: RunContext, start: Wrapped, done: int) -> list[Samples]:
    """Answers on the way, in process 0; none where they are not asked for."""
    count, folder = context.recipe.evaluation.samples, context.folder
    if not count or not context.world.main or context.data.eval is None:
        return []
    prompts = first_prompts(context.data.eval, count, context.tokenizer, encoder_decoder=context.source.encoder_decoder)
    return [Samples(start.model, context.tokenizer, prompts, folder.samples, output, last_step=done)]


def _layout(context: RunContext, model: nn.Module, opened: Opened) -> StepLayout:
    """How the rows of a step share micro-batches, which is printed."""
    settings = context.recipe.train
    size = training_micro_batch_size(settings)
    kind = _layout_kind(context, model, size)
    layout = StepLayout(kind=kind, size=size, longest=context.data.longest, processes=context.world.size)
    warmup = warmup_steps(settings, opened.steps)
    if settings.warmup_steps is not None and settings.warmup_steps > warmup:
        output.warn(
            f"train.warmup_steps is {settings.warmup_steps:,}, but the run has {opened.steps:,} optimizer steps, of "
            f"which {warmup:,} warm up. Give fewer, or train longer."
        )
    batch = layout.text(settings.batch_size)
    output.say(f"batch     {batch}; {opened.steps:,} optimizer steps, {warmup:,} of them warm-up")
    return layout


def _layout_kind(context: RunContext, model: nn.Module, size: int) -> Layout:
    """Images are all of one size, and stay in the order in which they were drawn."""
    if not context.inputs.of_text:
        return "none"
    packing, padding = context.recipe.data.packing, _padding(context, size)
    return choose_layout(packing, keeps_apart=keeps_apart(model), padding=padding)


def _padding(context: RunContext, size: int) -> float:
    """Share of padding that rows of similar length would have; a stream, whose rows are not known, has some."""
    if context.data.per_epoch is None:
        return 1.0
    return padding_by_length(context.data.train.lengths, context.recipe.train.batch_size, size)


def _step_rows(context: RunContext, model: nn.Module, steps: RunSteps) -> StepRows:
    def not_finite(step: int) -> list[str]:
        rows, indices = steps.rows(step)
        return [rows.where(index) for index in not_finite_rows(model, context, rows, indices)]

    def places(step: int) -> list[str]:
        rows, indices = steps.rows(step)
        return [rows.where(index) for index in indices]

    return StepRows(places=places, not_finite=not_finite)


def _halving(context: RunContext, provenance: dict[str, Any]) -> Callable[[int], None] | None:
    """What is done when a step is repeated with fewer rows; None where they may not be fewer."""
    if TRAIN not in context.automatic or context.world.size > 1:
        return None

    def halved(rows: int) -> None:
        provenance["recipe"]["train"]["micro_batch_size"] = rows
        record_recipe(context.folder, context.with_settings({TRAIN: rows}).recipe)
        output.warn(f"Out of memory: the step is repeated with micro-batches of {rows} rows, as are those after it.")

    return halved
