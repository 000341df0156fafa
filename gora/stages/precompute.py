"""The first stage: gradients of the user's own rows become ranks and initial values, in a plan file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from gora.errors import InputError
from gora.files import delete
from gora.gradients.archive import ArchivedStatistics, ArchiveType, archive_gradients
from gora.gradients.sampled import SampledStatistics
from gora.models.experts import Target, expert_counts, matrices_of
from gora.models.sharding import shard_weights
from gora.models.targets import weight_shape
from gora.plan import DataIdentity, Factors, ModelIdentity, Plan, write_plan
from gora.planning.budget import settle_rank_without_model
from gora.planning.decisions import PassInputs, make_plan
from gora.planning.first_step import compare_start, search_gamma
from gora.planning.gradient_pass import Collected
from gora.planning.memory_advice import explaining_memory
from gora.planning.placement import check_memory
from gora.planning.room import collect_within_memory
from gora.planning.sizes import GRADIENTS, settle_sizes
from gora.recipe.derived import automatic, gradient_steps, leaves_open, micro_batch_size
from gora.recipe.origins import Origin
from gora.recipe.schema import GoraSection, Recipe
from gora.report.ranks import rank_report
from gora.runs.base_model import identify, load_base_model
from gora.runs.context import RunContext
from gora.runs.decisions import record_recipe
from gora.runs.replacing import clear_run
from gora.runs.results import record_stage
from gora.runs.state import Mode
from gora.runs.targets import settle_targets
from gora.runtime.console import output
from gora.runtime.memory import peak_bytes, peak_text, reset_peak

GAMMA = "gora.gamma"


@dataclass(frozen=True, kw_only=True)
class Precomputed:
    """What the stage made."""

    plan: Plan
    path: Path
    seconds: float


def precompute(
    recipe: Recipe,
    *,
    mode: Mode = "new",
    low_memory: bool = False,
    keep: ArchiveType | None = None,
    trust_remote_code: bool = False,
) -> Precomputed:
    """Collect gradients and write `<output>/plan.safetensors`.

    Args:
        recipe: the recipe.
        mode: `new` expects no run in the folder, `resume` continues an interrupted pass, `overwrite` replaces a run.
        low_memory: sum projections and sampled rows of the gradients instead of whole ones.
        keep: also write the mean gradients to `<output>/gradients`, in this type.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the model, the rows or the targets cannot be used, or there is a plan already.
        Interrupted: a signal stopped the pass, and its sums were saved.
        GoraError: losses or gradients are not finite, or no gradient reaches any target.
    """
    if low_memory:
        _refuse_what_needs_whole_gradients(recipe, keep)
    with RunContext.open(recipe, command="gora precompute", mode=mode, trust_remote_code=trust_remote_code) as context:
        progress = context.settle("precompute")
        if leaves_open(recipe):
            with output.logging_to(context.folder.log, "precompute"):
                context = settle_sizes(context, progress)
        return precompute_in(context, low_memory=low_memory, keep=keep)


def precompute_in(context: RunContext, *, low_memory: bool = False, keep: ArchiveType | None = None) -> Precomputed:
    """As `precompute`, in a run that is open and may be written to."""
    folder, world = context.folder, context.world
    begin = time.monotonic()
    reset_peak()
    with output.logging_to(folder.log, "precompute"):
        check_memory(context, low_memory)
        with explaining_memory(context, "gradients", "while the model was loaded"):
            model = load_base_model(context)
        targets = settle_targets(context, model)
        identity = identify(context, model)
        if context.engine.shards_weights:
            shard_weights(model, context.device)
        if context.mode == "overwrite" and world.main:
            clear_run(folder)
        world.barrier()
        context, collected = collect_within_memory(context, model, targets, identity, low_memory=low_memory)
        summed = time.monotonic()
        shapes = {name: weight_shape(matrix) for name, matrix in matrices_of(targets).items()}
        inputs = _inputs(context, identity, targets, collected)
        plan, factors = _with_first_step(context, model, inputs, shapes, collected)
        _report_sampling(collected, shapes)
        if keep and not isinstance(collected.statistics, SampledStatistics):
            archive_gradients(folder.gradients, collected.statistics, shapes, keep, _as_json(inputs), write=world.main)
            output.say(f"kept      {folder.gradients} ({keep})")
        seconds = {"load": summed - begin - collected.seconds, "gradients": collected.seconds}
        if world.main:
            seconds["plan"] = time.monotonic() - summed
            record_stage(folder, "precompute", _facts(context, collected, seconds))
            _publish(context, plan, factors)
            delete(folder.pass_checkpoint)
        # Another process may read the plan next.
        world.barrier()
        seconds["plan"] = time.monotonic() - summed
        output.say(
            f"timing    {seconds['load']:.1f} s to load and dry-run, {seconds['gradients']:.1f} s for gradients, "
            f"{seconds['plan']:.1f} s for ranks, values and files; {peak_text()}"
        )
        output.say(f"plan      {folder.plan}")
    return Precomputed(plan=plan, path=folder.plan, seconds=time.monotonic() - begin)


def _with_first_step(
    context: RunContext,
    model: nn.Module,
    inputs: PassInputs,
    shapes: Mapping[str, tuple[int, int]],
    collected: Collected,
) -> tuple[Plan, Factors]:
    """The plan, with a gamma that is looked for where the recipe leaves it open; what the first step does is said."""
    recipe, statistics = context.recipe, collected.statistics
    plan, factors = make_plan(recipe, inputs, shapes, statistics)
    if recipe.gora.gamma == "auto":
        found = search_gamma(context, model, plan, factors)
        plan, factors = make_plan(recipe, inputs, shapes, statistics, {"gora.gamma": found})
    elif plan.gamma and not inputs.experts:
        compare_start(context, model, plan, factors)
    return plan, factors


def plan_from_gradients(recipe: Recipe, gradients: Path, *, mode: Mode = "new") -> Precomputed:
    """Make a plan from kept gradients, without the model and the rows.

    Args:
        recipe: gives ranks, gamma, alpha, importance and budget.
        gradients: a folder that `precompute` kept.
        mode: `new` expects no run in the folder, `overwrite` replaces it.

    Raises:
        InputError: the folder cannot be read or is of another pass, or there is a plan already.
    """
    with RunContext.open(recipe, command="gora precompute", mode=mode) as context:
        context.settle("precompute")
        return plan_from_gradients_in(context, gradients)


def plan_from_gradients_in(context: RunContext, gradients: Path) -> Precomputed:
    """As `plan_from_gradients`, in a run that is open and may be written to; process 0 makes the plan."""
    begin = time.monotonic()
    folder = context.folder
    with output.logging_to(folder.log, "precompute"):
        context = _without_trials(context)
        statistics = ArchivedStatistics(gradients)
        inputs = _from_json(statistics.inputs)
        context = settle_rank_without_model(context, statistics.shapes)
        if GRADIENTS in automatic(context.recipe) | context.automatic:
            context = context.with_settings({GRADIENTS: inputs.micro_batch_size})
        recipe = context.recipe
        _refuse_other_pass(recipe, gradients, inputs)
        plan, factors = make_plan(recipe, inputs, statistics.shapes, statistics)
        if context.world.main:
            if context.mode == "overwrite":
                clear_run(folder)
            _publish(context, plan, factors)
        context.world.barrier()
        output.say(f"plan      {folder.plan}, from {gradients}")
    return Precomputed(plan=plan, path=folder.plan, seconds=time.monotonic() - begin)


def _without_trials(context: RunContext) -> RunContext:
    """With the paper's first step where the preset, and not the user, wants sizes of it to be tried."""
    if context.recipe.gora.gamma != "auto":
        return context
    if context.recipe.origins.get(GAMMA, Origin("recipe")).source != "preset":
        raise InputError("gora.gamma: auto tries first steps on the model, which --from-gradients is without.")
    gamma = GoraSection().gamma
    why = "the paper's at rank 8: nothing can be tried without the model"
    output.say(f"start     gora.gamma: {gamma:g} ({why})")
    return context.with_settings({GAMMA: gamma}, origins={GAMMA: Origin("computed", why)})


def _facts(context: RunContext, collected: Collected, seconds: Mapping[str, float]) -> dict[str, object]:
    return {
        "engine": context.engine.name,
        "processes": context.world.size,
        **collected.facts,
        "seconds": dict(seconds),
        "peak_bytes": peak_bytes(),
    }


def _refuse_what_needs_whole_gradients(recipe: Recipe, keep: ArchiveType | None) -> None:
    settings, wanted = recipe.gora, []
    if keep:
        wanted.append("--keep-gradients: there is nothing to keep")
    if settings.init_a != "random":
        wanted.append(f"gora.init_a: {settings.init_a}; random does not need them")
    if settings.scale == "exact":
        wanted.append("gora.scale: exact; mean does not need them")
    if settings.steps == "auto":
        wanted.append("gora.steps: auto; a number does not need them")
    if settings.step != "gradient":
        wanted.append(f"gora.step: {settings.step}; gradient does not need them")
    if settings.importance != "sensitivity":
        wanted.append(f"gora.importance: {settings.importance}; sensitivity does not need them")
    if settings.rank_max == "unbounded":
        wanted.append("gora.rank_max: unbounded; B is summed at the largest rank, give a number or auto")
    if wanted:
        raise InputError("--low-memory never has whole gradients. Leave it out, or change what needs them.", wanted)


def _inputs(
    context: RunContext, model: ModelIdentity, targets: Mapping[str, Target], collected: Collected
) -> PassInputs:
    recipe = context.recipe
    return PassInputs(
        model=model,
        data=DataIdentity(fingerprint=context.data.fingerprint),
        steps=collected.steps,
        micro_batch_size=micro_batch_size(recipe),
        seed=recipe.seed,
        experts=expert_counts(targets),
        stopped=collected.stopped,
        signal=collected.signal.share,
        above_noise=collected.signal.above,
    )


def _as_json(inputs: PassInputs) -> dict[str, object]:
    return {**asdict(inputs), "model": inputs.model.model_dump(), "data": inputs.data.model_dump()}


def _from_json(document: Mapping[str, object]) -> PassInputs:
    values = dict(document)
    model, data = ModelIdentity.model_validate(values.pop("model")), DataIdentity.model_validate(values.pop("data"))
    return PassInputs(model=model, data=data, **values)  # type: ignore[arg-type]


def _refuse_other_pass(recipe: Recipe, gradients: Path, inputs: PassInputs) -> None:
    pairs = {
        "seed": (inputs.seed, recipe.seed),
        "gora.steps": (inputs.steps, inputs.steps if _same_end(recipe, inputs) else recipe.gora.steps),
        "gora.micro_batch_size": (inputs.micro_batch_size, micro_batch_size(recipe)),
        "adapter.experts": (bool(inputs.experts), recipe.adapter.experts),
    }
    if differing := [f"{key}: {old} there, {new} in the recipe" for key, (old, new) in pairs.items() if old != new]:
        raise InputError(f"{gradients} holds the gradients of another pass.", differing)


def _same_end(recipe: Recipe, inputs: PassInputs) -> bool:
    """Whether a pass that ends by itself would have ended where the kept one did, as far as they tell."""
    return recipe.gora.steps == "auto" and (bool(inputs.stopped) or inputs.steps == gradient_steps(recipe))


def _report_sampling(collected: Collected, shapes: Mapping[str, tuple[int, int]]) -> None:
    if isinstance(collected.statistics, SampledStatistics):
        errors = sorted(collected.statistics.relative_error(name) for name in shapes)
        typical, worst = errors[len(errors) // 2], errors[-1]
        output.say(f"sampling  standard error of the importances: {typical:.1%} in the middle, {worst:.1%} at most")


def _publish(context: RunContext, plan: Plan, factors: Factors) -> None:
    record_recipe(context.folder, context.recipe)
    write_plan(context.folder.plan, plan, factors)
    output.say(rank_report(plan))
