"""The second stage: train the adapter that the plan describes, and save it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from gora.adapters.save import BaseNote, adapter_values, save_adapter, save_whole
from gora.data.prompting import describe_prompt_format
from gora.errors import GoraError, InputError, Interrupted
from gora.files import write_text
from gora.methods import METHODS
from gora.models.load import default_device
from gora.plan import Plan, read_plan
from gora.recipe import accumulation_steps, dump_recipe
from gora.recipe.schema import Recipe
from gora.runs.finish import complete, finish, is_finished, note_before_saving
from gora.runs.folder import RunFolder
from gora.runs.loss import evaluate_loss
from gora.runs.results import versions
from gora.runs.resume import check_same_rows, clear, plan_differences, provenance_of, starting_point
from gora.runs.setup import Setup, begin
from gora.runtime.console import output
from gora.runtime.interrupt import StopRequest, stopping_between_steps
from gora.runtime.memory import peak_bytes, peak_text, reset_peak
from gora.runtime.progress import clock
from gora.training.callbacks import RefuseNaN, Report, SaveAndLog, StopWhenAsked
from gora.training.engine_training import check_engine, forget_engine, gradient_norm, refuse_what_cannot_train
from gora.training.groups import parameter_groups
from gora.training.metrics import Metrics
from gora.training.schedule import optimizer_steps, warmup_steps
from gora.training.start import Wrapped, fingerprint, keep_initial, wrap_model
from gora.training.trainer import GoraTrainer


@dataclass(frozen=True)
class Trained:
    """What the stage made."""

    adapter: Path
    losses: dict[str, float]
    """Evaluation loss of the `base` model, with the `initial` and with the `final` adapter; empty without rows."""
    steps: int
    seconds: float


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, trust_remote_code: bool = False) -> Trained:
    """Train the adapter and write `<output>/adapter`.

    Args:
        recipe: the recipe.
        resume: go on from the newest checkpoint of an interrupted run.
        overwrite: replace the adapter, checkpoints and metrics of an earlier run.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the recipe, the rows, the plan or the run folder cannot be used.
        Interrupted: a signal stopped the run, and a checkpoint was saved.
        GoraError: training failed.
    """
    world, engine = begin(recipe)
    refuse_what_cannot_train(engine, default_device(), recipe.adapter.method)
    folder = RunFolder.of(recipe.output)
    accumulation = accumulation_steps(recipe.train, world.size)
    if resume and not overwrite and folder.trained is not None:
        if is_finished(folder, recipe):
            raise InputError(f"{folder.trained} is finished: there is nothing to resume.")
        losses = finish(recipe, folder, folder.trained, trust_remote_code=trust_remote_code)
        return Trained(folder.trained, losses, 0, 0.0)
    checkpoint = starting_point(folder, recipe, engine, world, resume, overwrite)
    plan = _read_plan(folder, recipe) if METHODS[recipe.adapter.method].needs_plan else None
    with output.logging_to(folder.log, "train"):
        setup = Setup.of(recipe, trust_remote_code=trust_remote_code)
        if checkpoint is not None:
            check_same_rows(checkpoint, setup.data.fingerprint)
        steps = optimizer_steps(len(setup.data.train), recipe.train, accumulation, world.size)
        start = wrap_model(setup, folder, plan, steps=steps, resumed=checkpoint is not None)
        if checkpoint is None and world.main:
            clear(folder)
            write_text(folder.recipe, dump_recipe(recipe))
            if start.initial:
                keep_initial(folder, start.initial)
        with stopping_between_steps() as request:
            trainer, report = _run_trainer(setup, folder, start.model, plan, steps, accumulation, checkpoint, request)
            if world.main:
                cost = {"trainable_parameters": start.trainable, "seconds": report.seconds, "peak_bytes": peak_bytes()}
                result = {"rows": len(setup.data.eval or ()), "loss": start.losses, **cost, "versions": versions()}
                note_before_saving(folder, setup.data.fingerprint, result)
            made = _save(setup, folder, start)
        if number := world.most(request.number or 0):
            raise Interrupted(number, f"{made} is trained and saved; add --resume for what is left.")
        losses = complete(folder, world, _final_loss(setup, trainer, start))
        rate = f"{trainer.state.global_step} steps in {clock(report.seconds)}, {report.tokens_per_second:,.0f} tokens/s"
        output.say(f"timing    {rate}; {peak_text()}")
        untouched = "base" if start.frozen == start.original else "frozen"
        output.say(f"base      every {untouched} weight is what it was before training")
        output.say(f"adapter   {made}")
    return Trained(made, losses, trainer.state.global_step, report.seconds)


def _final_loss(setup: Setup, trainer: GoraTrainer, start: Wrapped) -> float | None:
    if not setup.data.eval:
        return None
    step, loss = trainer.last_evaluation
    return loss if step == trainer.state.max_steps else evaluate_loss(start.model, setup)


def _read_plan(folder: RunFolder, recipe: Recipe) -> Plan:
    plan = read_plan(folder.plan)
    if differences := plan_differences(plan, recipe):
        advice = "Make it again with `gora precompute --overwrite`."
        raise InputError(f"{folder.plan} was made with other settings. {advice}", differences)
    return plan


def _run_trainer(
    setup: Setup,
    folder: RunFolder,
    model: PreTrainedModel | PeftModel,
    plan: Plan | None,
    steps: int,
    accumulation: int,
    checkpoint: Path | None,
    request: StopRequest,
) -> tuple[GoraTrainer, Report]:
    settings, method = setup.recipe.train, METHODS[setup.recipe.adapter.method]
    world, engine = setup.world, setup.engine
    ratio = method.lr_ratio if settings.loraplus_lr_ratio == "auto" else settings.loraplus_lr_ratio
    batch = f"{settings.batch_size} rows = {settings.micro_batch_size} a micro-batch x {accumulation} accumulated"
    batch += f" x {world.size} processes" if world.size > 1 else ""
    output.say(f"batch     {batch}; {steps:,} optimizer steps, {warmup_steps(settings, steps):,} of them warm-up")
    done = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    metrics = Metrics(folder.metrics, done, write=world.main)
    groups = parameter_groups(model, settings, ratio, method.parts)
    report = Report(output, metrics, groups, engine, lambda: check_engine(trainer, engine, world))
    reset_peak()
    trainer = GoraTrainer(
        model,
        setup.recipe,
        folder,
        setup.data.train,
        setup.collator,
        steps=steps,
        accumulation=accumulation,
        method=method,
        lr_ratio=ratio,
        precision=setup.precision,
        world=world,
        engine=engine,
        all_used=plan is not None and all(module.gradient_norm > 0 for module in plan.adapted),
        evaluate_loss=(lambda: evaluate_loss(model, setup)) if setup.data.eval else None,
        callbacks=[
            *method.callbacks(model),
            report,
            SaveAndLog(settings),
            StopWhenAsked(request, world),
            RefuseNaN(world, lambda: gradient_norm(trainer)),
        ],
        provenance=provenance_of(setup.recipe, folder, setup.data.fingerprint, world),
    )
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        report.stop()
        forget_engine()
    reached = trainer.state.global_step
    number = world.most(request.number or 0)
    if number and reached < steps:
        kept = f"{folder.newest_checkpoint()} holds step {reached} of {steps}; add --resume to go on from it."
        raise Interrupted(number, kept)
    return trainer, report


def _save(setup: Setup, folder: RunFolder, start: Wrapped) -> Path:
    """Save what was trained; returns the adapter's folder, or that of the model for full fine-tuning."""
    model, adapter = start.model, setup.recipe.adapter
    if fingerprint(model, setup.world) != start.frozen:
        raise GoraError(
            "The base weights changed during training. The adapter would not fit the base model, so it is not saved."
        )
    values, prompt_format = adapter_values(model), describe_prompt_format(setup.recipe.data)
    if not isinstance(model, PeftModel):
        if setup.world.main:
            save_whole(folder.model, model, setup.tokenizer, model.dtype, prompt_format)
        return folder.model
    dtype = str(model.dtype).removeprefix("torch.")
    labels = tuple(setup.recipe.data.choices or ()) if setup.source.head == "classification" else None
    base = BaseNote(
        dtype=dtype, quantization=setup.recipe.model.quantization, fingerprint=start.original, labels=labels
    )
    if setup.world.main:
        save_adapter(
            folder.adapter,
            model,
            setup.tokenizer,
            method=adapter.method,
            base=base,
            prompt_format=prompt_format,
            values=values,
            initial=start.initial,
        )
    return folder.adapter
