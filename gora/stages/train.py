"""The second stage: train the adapter that the plan describes, and save it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from gora.adapters.base import check_base
from gora.adapters.save import BaseNote, adapter_values, save_adapter, save_values, save_whole
from gora.data.prompting import describe_prompt_format
from gora.errors import GoraError, InputError, Interrupted
from gora.files import delete
from gora.methods import METHODS
from gora.models.quantization import quantization_of
from gora.models.rows_apart import keeps_apart
from gora.plan import Plan, read_plan
from gora.planning.memory_advice import explained, explaining_memory
from gora.planning.sizes import TRAIN, settle_sizes
from gora.probing.rate import settle_rate
from gora.recipe import accumulation_steps
from gora.recipe.derived import recomputes_activations, training_micro_batch_size
from gora.recipe.schema import Recipe
from gora.runs.card import write_card
from gora.runs.context import RunContext
from gora.runs.decisions import as_decided, record_recipe
from gora.runs.folder import RunFolder, step_of
from gora.runs.loss import evaluate_loss, finite_loss, not_finite_rows
from gora.runs.provenance import (
    check_provenance,
    check_same_base,
    check_same_rows,
    check_same_settings,
    plan_differences,
    provenance_of,
)
from gora.runs.replacing import clear_training
from gora.runs.results import (
    complete_results,
    forget_training,
    held_results,
    hold_results,
    record_stage,
    versions,
)
from gora.runs.state import Mode, Progress, RunState
from gora.runtime.console import output
from gora.runtime.interrupt import StopRequest, stopping_between_steps
from gora.runtime.memory import peak_bytes, peak_text, reset_peak
from gora.runtime.out_of_memory import is_out_of_memory, release_memory
from gora.runtime.progress import clock
from gora.stages.report import close_with_page
from gora.training.callbacks import Report, SaveAndLog, StopOrSave
from gora.training.course import Course
from gora.training.engine_training import check_engine, forget_engine, refuse_what_cannot_train, release_engine
from gora.training.fitting import StepOutOfMemory
from gora.training.groups import parameter_groups
from gora.training.keeping import KeepBest, read_best, restore
from gora.training.layout import Layout, StepLayout, choose_layout, padding_by_length
from gora.training.metrics import Metrics
from gora.training.room import check_room
from gora.training.samples import Samples, first_prompts
from gora.training.saved_state import check_state
from gora.training.schedule import optimizer_steps, refuse_too_few_steps, warmup_steps
from gora.training.skipping import SkipNotFinite, StepRows
from gora.training.start import Wrapped, fingerprint, keep_initial, load_trained, wrap_model
from gora.training.step_rows import RunSteps, resume_stream, steps_of
from gora.training.trackers import refuse_what_cannot_be_watched, tracking
from gora.training.trainer import GoraTrainer
from gora.training.trial import confirm_micro_batch, halved_in_words
from gora.training.worse import CompareWithBase, end_warning, start_warning


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the stage made."""

    adapter: Path
    losses: dict[str, float]
    """Evaluation loss of the `base` model, with the `initial` and with the `final` adapter; empty without rows."""
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What is known before the model is loaded."""

    plan: Plan | None
    checkpoint: Path | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """What the training loop leaves."""

    trainer: GoraTrainer
    report: Report
    request: StopRequest
    course: Course


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
    if context.mode == "resume" and progress.state == RunState.TRAINED:
        return _complete(as_decided(settle_sizes(context, progress)), progress)
    with output.logging_to(context.folder.log, "train"):
        accumulation_steps(context.recipe.train, context.world.size)
        context = as_decided(settle_sizes(context, progress, plan=method.needs_plan))
        opened = _open(context, progress)
        with explaining_memory(context, "training", "while the model was loaded and adapted"):
            start = _start(context, opened)
        context = _settle_rate(_confirm(context, start), start)
        fitted = _fit(context, opened, start)
        try:
            with explaining_memory(context, "training", "in the evaluation after it"):
                return _close(context, start, fitted)
        finally:
            release_engine(fitted.trainer)


def _open(context: RunContext, progress: Progress) -> _Opened:
    """What is trained on which rows, how long, and from where; all of it refused here if it cannot be."""
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
    return _Opened(plan=plan, checkpoint=checkpoint, steps=steps)


def _read_plan(context: RunContext) -> Plan:
    path = context.folder.plan
    plan = read_plan(path)
    if differences := plan_differences(plan, context.recipe):
        raise InputError(
            f"{path} was made with other settings. Make it again with `gora precompute --overwrite`.", differences
        )
    return plan


def _start(context: RunContext, opened: _Opened) -> Wrapped:
    """The model with its adapter, and a folder that holds nothing of an earlier training."""
    folder, resumed = context.folder, opened.checkpoint is not None
    start = wrap_model(context, opened.plan, steps=opened.steps, resumed=resumed)
    if warning := start_warning(start.losses, context.recipe, gamma=opened.plan.gamma if opened.plan else None):
        output.warn(warning)
    done = step_of(opened.checkpoint) if opened.checkpoint else 0
    context.world.from_main(lambda: check_room(folder, start.model, context.recipe.train, opened.steps - done))
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


def _settle_rate(context: RunContext, start: Wrapped) -> RunContext:
    """Find the learning rate that is left to gora."""
    with explaining_memory(context, "training", "while a learning rate was looked for"):
        settled = settle_rate(context, start.model, _lr_ratio(context.recipe))
    if settled is not context and context.world.main:
        record_recipe(context.folder, settled.recipe)
    return settled


def _lr_ratio(recipe: Recipe) -> float:
    ratio = recipe.train.loraplus_lr_ratio
    return METHODS[recipe.adapter.method].lr_ratio if ratio == "auto" else ratio


def _fit(context: RunContext, opened: _Opened, start: Wrapped) -> _Fitted:
    """Take the optimizer steps that are left.

    Raises:
        Interrupted: a signal stopped the loop before its end, and a checkpoint was saved.
    """
    settings = context.recipe.train
    with stopping_between_steps() as request, tracking(context.recipe, context.folder.path):
        trainer, report, guard = _make_trainer(context, opened, start, request)
        failure = None
        try:
            trainer.train(resume_from_checkpoint=str(opened.checkpoint) if opened.checkpoint else None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)
        finally:
            report.stop()
            trainer.release_recordings()
            trainer.release_workers()
            forget_engine()
        if failure is not None:
            raise _out_of_memory(context, trainer, failure)
        reached, number = trainer.state.global_step, context.world.most(request.number or 0)
        newest = next(reversed(context.folder.all_checkpoints()), "")
        guard.refuse_if_lost(reached, opened.steps, str(newest))
        if number and reached < opened.steps:
            raise Interrupted(number, f"{newest} holds step {reached} of {opened.steps}; add --resume to continue.")
        if settings.keep == "best" and (best := read_best(context.folder.best)) is not None:
            restore(start.model, best)
            trainer.last_evaluation = (reached, best.loss)
            output.say(f"best      the values after step {best.step}, evaluation loss {best.loss:.4f}")
        # A signal that comes from here on waits until what was trained is saved.
        _save(context, start, report, trainer)
    return _Fitted(trainer=trainer, report=report, request=request, course=trainer.course)


def _out_of_memory(context: RunContext, trainer: GoraTrainer, failure: Exception) -> GoraError:
    """What ends the command; the steps that were finished are kept, where no other process is needed for that."""
    release_memory()
    if isinstance(failure, StepOutOfMemory):
        # Anywhere else a step may be half taken.
        trainer.save_last_step()
    context = context.with_settings({TRAIN: trainer.fitting.rows})
    kept = ""
    if saved := context.folder.all_checkpoints():
        half = f", with{halved_in_words(context)} for example" if halved_in_words(context) else ""
        kept = f"{saved[-1]} holds step {step_of(saved[-1])}; add --resume to continue{half}."
    return explained(context, failure, "training", where=f"in step {trainer.state.global_step + 1}", kept=kept)


def _close(context: RunContext, start: Wrapped, fitted: _Fitted) -> Trained:
    """The last evaluation, and what is said of the whole."""
    folder, trainer, report = context.folder, fitted.trainer, fitted.report
    made = folder.adapter if isinstance(start.model, PeftModel) else folder.model
    if number := context.world.most(fitted.request.number or 0):
        raise Interrupted(number, f"{made} is trained and saved; add --resume for what is left.")
    final = _final_loss(context, trainer, start)
    losses = context.world.from_main(lambda: _record(folder, final))
    steps = trainer.state.global_step
    rate = f"{steps} steps in {clock(report.seconds)}, {report.tokens_per_second:,.0f} {report.unit}/s"
    output.say(f"timing    {rate}; {peak_text()}")
    output.say(f"base      {'base' if start.frozen == start.original else 'frozen'} weights unchanged (SHA-256)")
    output.say(f"adapter   {made}")
    if warning := end_warning(losses, fitted.course, context.recipe):
        output.warn(warning)
    return Trained(adapter=made, losses=losses, steps=steps, seconds=report.seconds)


def _record(folder: RunFolder, final: float | None) -> dict[str, float]:
    losses = complete_results(folder, final)
    write_card(folder)
    return losses


def _complete(context: RunContext, progress: Progress) -> Trained:
    """Evaluate what an earlier command has trained and saved, and write `results.json`.

    Raises:
        InputError: it was trained with other settings, rows or base weights, or what was noted before the end is
            missing.
    """
    folder, trained = context.folder, progress.trained
    assert trained is not None
    check_same_settings(folder, context.recipe)
    data = held_results(folder)["data"]
    output.say(f"resuming  {trained} is trained; its evaluation is left to do")
    with output.logging_to(folder.log, "train"):
        if context.data.fingerprint != data:
            raise InputError(f"The rows are not those that {trained} was trained on. Add --overwrite to start over.")
        if trained == folder.adapter:
            check_base(trained, context.source, context.world)
        final = None
        if context.data.eval:
            model = load_trained(context, trained)
            with output.terminal.status("evaluating"):
                final = finite_loss(model, context, "the trained adapter")
        losses = context.world.from_main(lambda: _record(folder, final))
        output.say(f"adapter   {trained}")
        newest = folder.all_checkpoints()[-1:]
        if warning := end_warning(losses, Course.read(newest[0]) if newest else Course(), context.recipe):
            output.warn(warning)
    return Trained(adapter=trained, losses=losses)


def _make_trainer(
    context: RunContext, opened: _Opened, start: Wrapped, request: StopRequest
) -> tuple[GoraTrainer, Report, SkipNotFinite]:
    recipe, world, engine, plan = context.recipe, context.world, context.engine, opened.plan
    provenance = provenance_of(recipe, context.folder, context.data.fingerprint, context.base.note, world)
    settings, method = recipe.train, METHODS[recipe.adapter.method]
    ratio = _lr_ratio(recipe)
    size = training_micro_batch_size(settings)
    kind = _layout_of(context, start.model, size)
    layout = StepLayout(kind=kind, size=size, longest=context.data.longest, processes=world.size)
    batch = layout.text(settings.batch_size)
    warmup = warmup_steps(settings, opened.steps)
    output.say(f"batch     {batch}; {opened.steps:,} optimizer steps, {warmup:,} of them warm-up")
    done = step_of(opened.checkpoint) if opened.checkpoint else 0
    groups = parameter_groups(start.model, settings, ratio, method.parts)
    metrics = Metrics(context.folder.metrics, done, write=world.main)
    course = Course.read(opened.checkpoint) if opened.checkpoint else Course()
    report = Report(output, metrics, groups, engine, unit=context.data.train.unit)
    reset_peak()
    steps_of_run = steps_of(context.data, settings.batch_size, recipe.seed, opened.steps)
    trainer = GoraTrainer(
        start.model,
        context,
        steps=opened.steps,
        steps_of_run=steps_of_run,
        layout=layout,
        method=method,
        lr_ratio=ratio,
        all_used=plan is not None and all(module.gradient_norm > 0 for module in plan.adapted),
        evaluate_loss=(lambda: evaluate_loss(start.model, context)) if context.data.eval else None,
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
    report.check = lambda: check_engine(trainer, engine, world)
    report.lap = trainer.pace.lap
    stops = (StopOrSave(request, world, settings.save_minutes), guard)
    worse = CompareWithBase(start.losses, course, recipe, output)
    keep = KeepBest(start.model, settings, course, context.folder.best, output, write=world.main)
    watching = [keep, *_samples(context, start, done)] if context.data.eval else []
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


def _layout_of(context: RunContext, model: nn.Module, size: int) -> Layout:
    """How rows share micro-batches of so many; images are all as large, and stay as they were drawn."""
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


def _final_loss(context: RunContext, trainer: GoraTrainer, start: Wrapped) -> float | None:
    if not context.data.eval:
        return None
    step, loss = trainer.last_evaluation
    known = step == trainer.state.global_step and math.isfinite(loss)
    return loss if known else finite_loss(start.model, context, "the trained adapter")


def _save(context: RunContext, start: Wrapped, report: Report, trainer: GoraTrainer) -> None:
    """Save what was trained, after what is known of it; an earlier evaluation of another adapter goes first."""
    folder, world, model = context.folder, context.world, start.model
    if world.main:
        cost = {"trainable_parameters": start.trainable, "seconds": report.seconds, "peak_bytes": peak_bytes()}
        result = {"rows": len(context.data.eval or ()), "loss": start.losses, **cost, "versions": versions()}
        delete(folder.merged)
        forget_training(folder)
        record_stage(folder, "train", _facts(context, report, trainer))
        hold_results(folder, context.data.fingerprint, result)
    # Values first: neither a check nor a library may lose what was trained.
    values = adapter_values(model)
    unchanged = fingerprint(model, world) == start.frozen
    place = folder.rejected if not unchanged else folder.adapter if isinstance(model, PeftModel) else folder.model
    if world.main:
        try:
            _write(context, start, place, values)
        except Exception as error:
            try:
                save_values(folder.rejected, values)
            except GoraError:
                # There is no room for the values alone either: the newest checkpoint is what training resumes from.
                raise error from None
            kind = "" if isinstance(error, GoraError) else f"{type(error).__name__}: "
            raise GoraError(
                f"What was trained could not be saved as usual ({kind}{error}). Its values are in {folder.rejected}.",
                code="not-saved",
            ) from error
    if not unchanged:
        raise GoraError(
            "The base weights changed during training, so that what was trained would not fit the base model. It is "
            f"kept in {folder.rejected} and does not count as the result.",
            code="base-changed",
        )


def _write(context: RunContext, start: Wrapped, place: Path, values: dict[str, Tensor]) -> None:
    model, prompt_format = start.model, describe_prompt_format(context.recipe.data)
    if not isinstance(model, PeftModel):
        save_whole(
            place,
            model,
            context.processor,
            model.dtype,
            method=context.recipe.adapter.method,
            prompt_format=prompt_format,
        )
        return
    labels = None if context.source.head == "language" else tuple(context.recipe.data.choices or ())
    base = BaseNote(
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization_of(context.recipe.model, context.source),
        fingerprint=start.original,
        weights=context.base.note,
        quantized_files=context.source.quantized_files,
        labels=labels,
    )
    save_adapter(
        place,
        model,
        context.processor,
        method=context.recipe.adapter.method,
        base=base,
        prompt_format=prompt_format,
        values=values,
        initial=start.initial,
    )


def _facts(context: RunContext, report: Report, trainer: GoraTrainer) -> dict[str, Any]:
    return {
        "engine": context.engine.name,
        "runs_as": report.engine_text,
        "processes": context.world.size,
        "steps": trainer.state.global_step,
        "skipped_steps": trainer.course.skipped,
        "spikes": trainer.course.spikes,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "tokens_per_second": report.tokens_per_second,
        "unit": report.unit,
        "seconds": report.seconds,
        "data_wait_seconds": trainer.waited.total,
        "peak_bytes": peak_bytes(),
        "micro_batch_size": trainer.fitting.rows,
        "activation_checkpointing": recomputes_activations(context.recipe.train),
    }
