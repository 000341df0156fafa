"""The second stage: train the adapter that the plan describes, and save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from gora.errors import GoraError, InputError, Interrupted
from gora.files import write_json, write_text
from gora.methods import METHODS, AdapterSettings, Method
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.load import default_device
from gora.models.sharding import whole
from gora.models.targets import weight_shape
from gora.plan import Plan, identity_differences, read_factors, read_plan
from gora.recipe import accumulation_steps, dump_recipe
from gora.recipe.schema import Recipe
from gora.runtime.console import output
from gora.runtime.folder import RunFolder
from gora.runtime.interrupt import stopping_between_steps
from gora.runtime.memory import peak_text, reset_peak
from gora.runtime.progress import clock
from gora.runtime.world import World
from gora.stages.evaluate import evaluate_loss
from gora.stages.resume import check_same_rows, clear, origin_of, plan_differences, starting_point
from gora.stages.setup import Setup, begin
from gora.training.adapter import BaseNote, adapter_values, save_adapter
from gora.training.callbacks import RefuseNaN, Report, SaveAndLog, StopWhenAsked
from gora.training.engines import check_engine, gradient_norm, refuse_what_cannot_train
from gora.training.groups import ab_groups
from gora.training.metrics import Metrics
from gora.training.schedule import optimizer_steps
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
    refuse_what_cannot_train(engine, default_device())
    folder = RunFolder.of(recipe.output)
    method = METHODS[recipe.adapter.method]
    accumulation = accumulation_steps(recipe.train, world.size)
    checkpoint = starting_point(folder, recipe, engine, world, resume, overwrite)
    plan = _read_plan(folder, recipe) if method.needs_plan else None
    with output.logging_to(folder.log, "train"):
        setup = Setup.of(recipe, trust_remote_code=trust_remote_code)
        if checkpoint is not None:
            check_same_rows(checkpoint, setup.data.fingerprint)
        model = _load_wrapped(setup, folder, method, plan)
        if checkpoint is None and world.main:
            clear(folder)
            write_text(folder.recipe, dump_recipe(recipe))
        before = _fingerprint(model, world)
        losses = _losses_before(model, setup)
        trainer, report = _run_trainer(setup, folder, method, model, accumulation, checkpoint)
        _save(setup, folder, model, before)
        if setup.data.eval:
            step, loss = trainer.last_evaluation
            losses["final"] = loss if step == trainer.state.max_steps else evaluate_loss(model, setup)
        if world.main:
            write_json(folder.evaluation, {"rows": len(setup.data.eval or ()), "loss": losses})
        world.barrier()
        steps = trainer.state.global_step
        rate = f"{steps} steps in {clock(report.seconds)}, {report.tokens_per_second:,.0f} tokens/s"
        output.say(f"timing    {rate}; {peak_text()}")
        output.say("base      every base weight is what it was before training")
        output.say(f"adapter   {folder.adapter}")
    return Trained(folder.adapter, losses, steps, report.seconds)


def _read_plan(folder: RunFolder, recipe: Recipe) -> Plan:
    plan = read_plan(folder.plan)
    if differences := plan_differences(plan, recipe):
        advice = "Make it again with `gora precompute --overwrite`."
        raise InputError(f"{folder.plan} was made with other settings. {advice}", differences)
    return plan


def _load_wrapped(setup: Setup, folder: RunFolder, method: Method, plan: Plan | None) -> PeftModel:
    model = setup.load_model()
    targets = setup.find_targets(model)
    if plan is not None:
        _refuse_stranger(setup, folder, model, targets, plan)
    settings = setup.recipe.adapter
    factors = read_factors(folder.plan, plan) if plan else {}
    shared = AdapterSettings(settings.rank, settings.alpha, settings.dropout)
    torch.manual_seed(setup.recipe.seed)
    wrapped = method.wrap(model, targets, shared, plan, factors)
    trainable, _ = wrapped.get_nb_trainable_parameters()
    output.say(f"adapter   {settings.method}, {trainable:,} trainable parameters")
    return wrapped


def _refuse_stranger(
    setup: Setup, folder: RunFolder, model: PreTrainedModel, targets: Mapping[str, nn.Module], plan: Plan
) -> None:
    shapes = {name: weight_shape(module) for name, module in targets.items()}
    if differences := identity_differences(plan, setup.identify(model, targets), shapes):
        advice = "Make it again with `gora precompute --overwrite`."
        raise InputError(f"{folder.plan} does not belong to this model. {advice}", differences)
    if plan.data.fingerprint != setup.data.fingerprint:
        output.warn("the plan was made from other training rows than these.")


def _losses_before(model: PeftModel, setup: Setup) -> dict[str, float]:
    if not setup.data.eval:
        return {}
    with output.terminal.status("evaluating"):
        with model.disable_adapter():
            losses = {"base": evaluate_loss(model, setup)}
        losses["initial"] = evaluate_loss(model, setup)
    with_each = f"{losses['base']:.4f} with the base model, {losses['initial']:.4f} with the initial adapter"
    output.say(f"loss      {with_each}, on {len(setup.data.eval):,} evaluation rows")
    return losses


def _run_trainer(
    setup: Setup, folder: RunFolder, method: Method, model: PeftModel, accumulation: int, checkpoint: Path | None
) -> tuple[GoraTrainer, Report]:
    settings = setup.recipe.train
    world, engine = setup.world, setup.engine
    steps = optimizer_steps(len(setup.data.train), settings, accumulation, world.size)
    ratio = method.lr_ratio if settings.loraplus_lr_ratio == "auto" else settings.loraplus_lr_ratio
    batch = f"{settings.batch_size} rows = {settings.micro_batch_size} a micro-batch x {accumulation} accumulated"
    batch += f" x {world.size} processes" if world.size > 1 else ""
    output.say(f"batch     {batch}; {steps:,} optimizer steps")
    done = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    metrics = Metrics(folder.metrics, done, write=world.main)
    groups = ab_groups(model, settings, ratio)
    report = Report(output, metrics, groups, engine, lambda: check_engine(trainer, engine, world))
    reset_peak()
    with stopping_between_steps() as request:
        trainer = GoraTrainer(
            model,
            setup.recipe,
            folder,
            setup.data.train,
            setup.collator,
            steps=steps,
            accumulation=accumulation,
            lr_ratio=ratio,
            precision=setup.precision,
            world=world,
            engine=engine,
            evaluate_loss=(lambda: evaluate_loss(model, setup)) if setup.data.eval else None,
            callbacks=[
                report,
                SaveAndLog(settings),
                StopWhenAsked(request, world),
                RefuseNaN(world, lambda: gradient_norm(trainer)),
            ],
            origin=origin_of(setup.recipe, folder, setup.data.fingerprint, world),
        )
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            report.stop()
    reached = trainer.state.global_step
    number = world.most(request.number or 0)
    if number and reached < steps:
        kept = f"{folder.newest_checkpoint()} holds step {reached} of {steps}; add --resume to go on from it."
        raise Interrupted(number, kept)
    return trainer, report


def _fingerprint(model: PeftModel, world: World) -> str:
    """Fingerprint of all base weights, taken by process 0; the others hand it their shares."""
    weights = ((name, whole(weight)) for name, weight in base_weights(model))
    if world.main:
        return world.from_main(lambda: weights_fingerprint(weights))
    for _ in weights:
        pass
    return world.from_main(str)


def _save(setup: Setup, folder: RunFolder, model: PeftModel, before: str) -> None:
    if _fingerprint(model, setup.world) != before:
        raise GoraError(
            "The base weights changed during training. The adapter would not fit the base model, so it is not saved."
        )
    dtype = str(model.dtype).removeprefix("torch.")
    base = BaseNote(dtype, setup.recipe.model.quantization, before)
    method, values = setup.recipe.adapter.method, adapter_values(model)
    if setup.world.main:
        save_adapter(folder.adapter, model, setup.tokenizer, method=method, base=base, values=values)
