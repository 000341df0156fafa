"""Whether what lies in a run folder still belongs to the recipe that is run now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.plan import Plan
from gora.recipe import load_recipe
from gora.recipe.schema import Recipe
from gora.runtime.console import output
from gora.runtime.folder import RunFolder
from gora.stages.planning import micro_batch_size, rank_bounds

# Settings that change how a run is watched or kept, not what it computes.
_FREE_TO_CHANGE = {
    "description",
    "output",
    "train.log_steps",
    "train.save_steps",
    "train.keep_checkpoints",
    "evaluation.steps",
    "evaluation.micro_batch_size",
}


def starting_point(folder: RunFolder, recipe: Recipe, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None to begin at the first step.

    Raises:
        InputError: the folder holds an earlier run and nothing says what to do with it, or it was another recipe's.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with an earlier run and --overwrite deletes it: give one of the two.")
    if not resume:
        if not overwrite:
            how = "Add --resume to go on with it, --overwrite to replace it, or give another --set output=FOLDER."
            folder.refuse_earlier_run(folder.adapter, how=how)
        return None
    if folder.adapter.exists():
        raise InputError(f"{folder.adapter} is finished: there is nothing to resume.")
    checkpoint = folder.newest_checkpoint()
    if checkpoint is None:
        output.warn(f"{folder.checkpoints} holds no checkpoint: training begins at the first step.")
        return None
    check_same_recipe(folder.recipe, recipe)
    output.say(f"resuming  {checkpoint}")
    return checkpoint


def clear(folder: RunFolder) -> None:
    """Delete what training left here before; the plan and the log stay."""
    for path in (folder.adapter, folder.checkpoints):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder.metrics, folder.evaluation):
        path.unlink(missing_ok=True)


def check_same_recipe(saved: Path, recipe: Recipe) -> None:
    """Refuse to resume a run with other settings than it was begun with.

    Raises:
        InputError: listing the settings that differ.
    """
    if not saved.is_file():
        raise InputError(
            f"{saved} is missing: it cannot be told whether the checkpoint belongs to this recipe. Use --overwrite."
        )
    begun, now = _flat(load_recipe(str(saved)).recipe.model_dump()), _flat(recipe.model_dump())
    keys = sorted((begun.keys() | now.keys()) - _FREE_TO_CHANGE)
    differing = [
        f"{key}: {begun.get(key)!r} when the run began, {now.get(key)!r} now"
        for key in keys
        if begun.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            "The run was begun with other settings. Give the same ones, or --overwrite to begin anew.", differing
        )


def plan_differences(plan: Plan, recipe: Recipe) -> list[str]:
    """Settings of the recipe that the plan was not made with, one sentence each."""
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    pairs = {
        "adapter.rank": (plan.reference_rank, recipe.adapter.rank),
        "adapter.alpha": (plan.alpha, recipe.adapter.alpha),
        "gora.gamma": (plan.gamma, recipe.gora.gamma),
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


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
