"""The first stage: gradients of the user's own rows become ranks and initial values, in a plan file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gora.errors import InputError
from gora.files import write_text
from gora.gradients.archive import ArchivedStatistics, ArchiveType, archive_gradients
from gora.gradients.sampled import SampledStatistics
from gora.models.sharding import shard_weights
from gora.models.targets import weight_shape
from gora.plan import DataIdentity, Factors, ModelIdentity, Plan, write_plan
from gora.planning.decisions import PassInputs, make_plan
from gora.planning.gradient_pass import Collected, collect_gradients
from gora.planning.placement import check_memory
from gora.recipe import dump_recipe
from gora.recipe.derived import micro_batch_size
from gora.recipe.schema import Recipe
from gora.report.ranks import rank_report
from gora.runs.folder import RunFolder
from gora.runs.resume import clear
from gora.runs.setup import Setup, begin
from gora.runtime.console import output
from gora.runtime.memory import peak_text, reset_peak


@dataclass(frozen=True)
class Precomputed:
    """What the stage made."""

    plan: Plan
    path: Path
    seconds: float


def precompute(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    low_memory: bool = False,
    keep: ArchiveType | None = None,
    trust_remote_code: bool = False,
) -> Precomputed:
    """Collect gradients and write `<output>/plan.safetensors`.

    Args:
        recipe: the recipe.
        resume: go on with the sums of an interrupted pass.
        overwrite: replace the plan of an earlier run.
        low_memory: keep projections and sampled rows of the gradients instead of whole ones.
        keep: also write the mean gradients to `<output>/gradients`, in this type.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the model, the rows or the targets cannot be used, or there is a plan already.
        Interrupted: a signal stopped the pass, and its sums were saved.
        GoraError: losses or gradients are not finite, or no gradient reaches any target.
    """
    if low_memory:
        _refuse_what_needs_whole_gradients(recipe, keep)
    world, _ = begin(recipe)
    folder = RunFolder.of(recipe.output)
    _check_folder(folder, resume, overwrite)
    start = time.monotonic()
    reset_peak()
    with output.logging_to(folder.log, "precompute"):
        setup = Setup.of(recipe, trust_remote_code=trust_remote_code)
        check_memory(setup, low_memory)
        model = setup.load_model()
        targets = setup.find_targets(model)
        identity = setup.identify(model, targets)
        if setup.engine.shards_weights:
            shard_weights(model, setup.device)
        collected = collect_gradients(setup, folder, model, targets, identity, low_memory=low_memory)
        summed = time.monotonic()
        shapes = {name: weight_shape(module) for name, module in targets.items()}
        inputs = _inputs(setup, identity)
        plan, factors = make_plan(recipe, inputs, shapes, collected.statistics)
        _report_sampling(collected, shapes)
        if keep and not isinstance(collected.statistics, SampledStatistics):
            archive_gradients(folder.gradients, collected.statistics, shapes, keep, _as_json(inputs), write=world.main)
            output.say(f"kept      {folder.gradients} ({keep})")
        if world.main:
            if overwrite:
                clear(folder)
            _publish(folder, recipe, plan, factors)
            folder.drop_pass_checkpoint()
        # Another process may go on to read the plan.
        world.barrier()
        done = time.monotonic()
        loading = summed - start - collected.seconds
        output.say(
            f"timing    {loading:.1f}s to load and try, {collected.seconds:.1f}s for gradients, "
            f"{done - summed:.1f}s for ranks, values and files; {peak_text()}"
        )
        output.say(f"plan      {folder.plan}")
    return Precomputed(plan, folder.plan, done - start)


def plan_again(recipe: Recipe, gradients: Path, *, overwrite: bool = False) -> Precomputed:
    """Make a plan from kept gradients, without the model and the rows.

    Args:
        recipe: gives ranks, gamma, alpha, importance and budget.
        gradients: a folder that `precompute` kept.
        overwrite: replace the plan of an earlier run.

    Raises:
        InputError: the folder cannot be read or is of another pass, or there is a plan already.
    """
    folder = RunFolder.of(recipe.output)
    _check_folder(folder, resume=False, overwrite=overwrite)
    start = time.monotonic()
    with output.logging_to(folder.log, "precompute"):
        statistics = ArchivedStatistics(gradients)
        inputs = _from_json(statistics.inputs)
        _refuse_other_pass(recipe, gradients, inputs)
        plan, factors = make_plan(recipe, inputs, statistics.shapes, statistics)
        _publish(folder, recipe, plan, factors)
        output.say(f"plan      {folder.plan}, from {gradients}")
    return Precomputed(plan, folder.plan, time.monotonic() - start)


def _check_folder(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume goes on with an earlier run and --overwrite deletes it: give one of the two.")
    if overwrite:
        folder.drop_pass_checkpoint()
    else:
        folder.refuse_to_replace(folder.plan, how="Add --overwrite to replace it, or give another --set output=FOLDER.")
    if not resume:
        how = "Add --resume to go on with it, or --overwrite to begin anew."
        folder.refuse_to_replace(folder.pass_checkpoint, how=how)


def _refuse_what_needs_whole_gradients(recipe: Recipe, keep: ArchiveType | None) -> None:
    settings, wanted = recipe.gora, []
    if keep:
        wanted.append("--keep-gradients: there is nothing to keep")
    if settings.init_a != "random":
        wanted.append(f"gora.init_a: {settings.init_a}; random does not need them")
    if settings.importance != "sensitivity":
        wanted.append(f"gora.importance: {settings.importance}; sensitivity does not need them")
    if settings.rank_max == "unbounded":
        wanted.append("gora.rank_max: unbounded; B is summed at the largest rank, give a number or auto")
    if wanted:
        raise InputError("--low-memory never has whole gradients. Leave it out, or change what needs them.", wanted)


def _inputs(setup: Setup, model: ModelIdentity) -> PassInputs:
    data = DataIdentity(fingerprint=setup.data.fingerprint)
    recipe = setup.recipe
    return PassInputs(
        model=model, data=data, steps=recipe.gora.steps, micro_batch_size=micro_batch_size(recipe), seed=recipe.seed
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
        "gora.steps": (inputs.steps, recipe.gora.steps),
        "gora.micro_batch_size": (inputs.micro_batch_size, micro_batch_size(recipe)),
    }
    if differing := [f"{key}: {old} there, {new} in the recipe" for key, (old, new) in pairs.items() if old != new]:
        raise InputError(f"{gradients} holds the gradients of another pass.", differing)


def _report_sampling(collected: Collected, shapes: Mapping[str, tuple[int, int]]) -> None:
    if isinstance(collected.statistics, SampledStatistics):
        errors = sorted(collected.statistics.relative_error(name) for name in shapes)
        typical, worst = errors[len(errors) // 2], errors[-1]
        output.say(f"sampling  standard error of the importances: {typical:.1%} in the middle, {worst:.1%} at most")


def _publish(folder: RunFolder, recipe: Recipe, plan: Plan, factors: Factors) -> None:
    write_text(folder.recipe, dump_recipe(recipe))
    write_plan(folder.plan, plan, factors)
    output.say(rank_report(plan))
