"""Whether what lies in a run folder still belongs to the recipe that is run now."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gora.errors import InputError
from gora.plan import Plan
from gora.recipe.derived import micro_batch_size, rank_bounds
from gora.recipe.schema import Recipe
from gora.runs.folder import PROVENANCE, RunFolder
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.world import World

# Settings that change how a run is watched or kept, not what it computes.
_FREE_TO_CHANGE = {
    "description",
    "output",
    "train.log_steps",
    "train.save_steps",
    "train.keep_checkpoints",
    "evaluation.steps",
    "evaluation.micro_batch_size",
    "evaluation.tasks",
    "evaluation.batch_size",
}


def starting_point(
    folder: RunFolder, recipe: Recipe, engine: Engine, world: World, resume: bool, overwrite: bool
) -> Path | None:
    """The checkpoint to go on from, or None to begin at the first step.

    Raises:
        InputError: the folder holds an earlier run and nothing says what to do with it, or it was another recipe's.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with an earlier run and --overwrite deletes it: give one of the two.")
    if not resume:
        if not overwrite:
            how = "Add --resume to go on with it, --overwrite to replace it, or give another --set output=FOLDER."
            folder.refuse_earlier_run(folder.adapter, folder.model, how=how)
        return None
    checkpoint = folder.newest_checkpoint()
    if checkpoint is None:
        output.warn(f"{folder.checkpoints} holds no checkpoint: training begins at the first step.")
        return None
    check_same_recipe(checkpoint, recipe, folder)
    _check_processes(checkpoint, engine, world)
    output.say(f"resuming  {checkpoint}")
    return checkpoint


def clear(folder: RunFolder) -> None:
    """Delete what training left here before; the plan and the log stay."""
    for path in (folder.adapter, folder.model, folder.checkpoints, folder.evaluation, folder.merged):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder.metrics, folder.results, folder.pending_results, folder.initial):
        path.unlink(missing_ok=True)


def provenance_of(recipe: Recipe, folder: RunFolder, data: str, world: World) -> dict[str, Any]:
    """What a run is of: saved with its checkpoints, and compared before one is resumed."""
    settings = recipe.model_dump(mode="json")
    return {"recipe": settings, "plan": _plan_hash(folder), "data": data, "processes": world.size}


def check_same_recipe(checkpoint: Path, recipe: Recipe, folder: RunFolder) -> None:
    """Refuse to resume a checkpoint with other settings or another plan than it was begun with.

    Raises:
        InputError: listing what differs.
    """
    provenance = _read_provenance(checkpoint)
    differing = _differing(provenance["recipe"], recipe)
    if provenance["plan"] != _plan_hash(folder):
        differing.append(f"{folder.plan} is not the plan that the run began with")
    _refuse(differing)


def check_same_settings(folder: RunFolder, recipe: Recipe) -> None:
    """Refuse to go on with what another recipe has made.

    Raises:
        InputError: listing what differs, or the run's recipe cannot be read.
    """
    try:
        begun = dict(yaml.safe_load(folder.recipe.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{folder.recipe} does not say what the run is of: {error}") from None
    _refuse(_differing(begun, recipe))


def _differing(recipe: dict[str, Any], now: Recipe) -> list[str]:
    """A setting that the older recipe does not have counts as its default: it may be new in this gora."""
    try:
        old, new = (flat(each.model_dump(mode="json")) for each in (Recipe.model_validate(recipe), now))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors()]
        raise InputError("The recipe that the run began with is none for this gora.", problems) from None
    keys = sorted((old.keys() | new.keys()) - _FREE_TO_CHANGE)
    return [
        f"{key}: {old.get(key)!r} when the run began, {new.get(key)!r} now"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _refuse(differing: list[str]) -> None:
    if differing:
        raise InputError(
            "The run was begun with other settings. Give the same ones, or --overwrite to begin anew.", differing
        )


def check_same_rows(checkpoint: Path, data: str) -> None:
    """Refuse to resume on other training rows.

    Raises:
        InputError: the rows are others than those the run began with.
    """
    if _read_provenance(checkpoint)["data"] != data:
        raise InputError(
            f"The training rows are not those that {checkpoint} was trained on. Use --overwrite to begin anew."
        )


def _check_processes(checkpoint: Path, engine: Engine, world: World) -> None:
    """Every step sees the same rows with any number of processes, but some engines share out the optimizer's state."""
    begun = _read_provenance(checkpoint)["processes"]
    if begun != world.size and engine.kind != "ddp":
        raise InputError(
            f"{checkpoint} holds the optimizer's state in {begun} shares, one a process, as {engine.name} keeps it; "
            f"{world.size} processes are here. Resume with {begun}."
        )


def _read_provenance(checkpoint: Path) -> dict[str, Any]:
    try:
        provenance = json.loads((checkpoint / PROVENANCE).read_text(encoding="utf-8"))
        return {key: provenance[key] for key in ("recipe", "plan", "data", "processes")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint / PROVENANCE} does not say what the checkpoint is of: {error}") from None


def _plan_hash(folder: RunFolder) -> str | None:
    return hashlib.sha256(folder.plan.read_bytes()).hexdigest() if folder.plan.exists() else None


def plan_differences(plan: Plan, recipe: Recipe) -> list[str]:
    """Settings of the recipe that the plan was not made with, one sentence each."""
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    pairs = {
        "adapter.rank": (plan.reference_rank, recipe.adapter.rank),
        "adapter.alpha": (plan.alpha, recipe.adapter.alpha),
        "gora.gamma": (plan.gamma, recipe.gora.gamma),
        "gora.init_a": (plan.init_a, recipe.gora.init_a),
        "gora.rank_min": (plan.rank_min, bounds.smallest),
        "gora.rank_max": (plan.rank_max, bounds.largest),
        "gora.importance": (plan.importance, recipe.gora.importance),
        "gora.budget": (plan.budget, recipe.gora.budget),
        "seed": (plan.seed, recipe.seed),
        "gora.steps": (plan.steps, recipe.gora.steps),
        "gora.micro_batch_size": (plan.micro_batch_size, micro_batch_size(recipe)),
    }
    return [
        f"{key}: {made} in the plan, {wanted} in the recipe" for key, (made, wanted) in pairs.items() if made != wanted
    ]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a recipe by dotted key, such as `train.epochs`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
