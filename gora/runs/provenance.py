"""What a run was begun with, and whether it is still so: recipe, plan, rows, base model, processes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gora.errors import InputError
from gora.files import read_json
from gora.manifest import sha256_of
from gora.models.weight_files import StoredWeights, WeightsNote
from gora.plan import Plan
from gora.recipe.derived import AUTOMATIC, allocation_rule, asked_parameters, by_key, micro_batch_size, rank_bounds
from gora.recipe.document import read_document
from gora.recipe.schema import Recipe
from gora.runs.folder import PROVENANCE, RunFolder
from gora.runtime.engine import Engine
from gora.runtime.world import World

_START_OVER = "Give the same ones, or --overwrite to start over."
# Settings that change how a run is watched or kept, not what it computes.
_FREE_TO_CHANGE = {
    "description",
    "output",
    # Every step has the rows that it has with any micro-batch, and what is recomputed is what was dropped.
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.log_steps",
    "train.max_skipped_steps",
    "train.save_steps",
    "train.save_minutes",
    "train.keep_checkpoints",
    "train.report_to",
    "evaluation.steps",
    "evaluation.micro_batch_size",
    "evaluation.tasks",
    "evaluation.batch_size",
    "evaluation.samples",
}


def provenance_of(recipe: Recipe, folder: RunFolder, data: str, base: WeightsNote, world: World) -> dict[str, Any]:
    """What training is begun with: saved in each checkpoint, and compared before one is resumed."""
    settings = recipe.model_dump(mode="json")
    return {
        "recipe": settings,
        "plan": _plan_hash(folder),
        "data": data,
        "base": asdict(base),
        "processes": world.size,
    }


def check_provenance(checkpoint: Path, recipe: Recipe, folder: RunFolder, engine: Engine, world: World) -> None:
    """Refuse to resume a checkpoint with other settings, another plan or other processes than it was saved with.

    Rows and base weights are not known yet; see `check_same_rows` and `check_same_base`.

    Raises:
        InputError: listing what differs.
    """
    begun = _read(checkpoint)
    differing = _differing(begun["recipe"], recipe)
    if begun["plan"] != _plan_hash(folder):
        differing.append(f"{folder.plan} is not the plan that the run began with")
    _refuse(differing)
    # Every step sees the same rows with any number of processes, but some engines shard the optimizer's state.
    if begun["processes"] != world.size and engine.kind != "ddp":
        raise InputError(
            f"{checkpoint} holds the optimizer's state in {begun['processes']} shards, one per process, as "
            f"{engine.name} keeps it; this run has {world.size} processes. Resume with {begun['processes']}."
        )


def begun_with(folder: RunFolder, checkpoint: Path | None) -> dict[str, Any]:
    """What a run was begun with of the settings that gora may choose, by key; empty where nothing says so.

    Args:
        folder: its `recipe.yaml` counts where there is no checkpoint.
        checkpoint: the one to resume.
    """
    try:
        recipe = read_document(folder.recipe).values if checkpoint is None else _read(checkpoint)["recipe"]
        values = _effective(Recipe.model_validate(recipe))
    except (InputError, ValueError):
        # Whatever is wrong with it is refused where it is compared.
        return {}
    return {key: values[key] for key in AUTOMATIC if values[key] != "auto"}


def check_same_rows(checkpoint: Path, data: str) -> None:
    """Refuse to resume on other training rows.

    Raises:
        InputError: the rows are not those that the run began with.
    """
    if _read(checkpoint)["data"] != data:
        raise InputError(
            f"The training rows are not those that {checkpoint} was trained on. Add --overwrite to start over."
        )


def check_same_base(checkpoint: Path, base: StoredWeights) -> None:
    """Refuse to resume on other base weights.

    Raises:
        InputError: the weights are not those that the run began with, saying which differ.
    """
    if changed := base.changes_since(_read(checkpoint)["base"]):
        raise InputError(
            f"The weights of the base model are not those that {checkpoint} was trained on. Restore them, or add "
            "--overwrite to start over.",
            [changed],
        )


def check_same_settings(folder: RunFolder, recipe: Recipe) -> None:
    """Refuse to complete what another recipe has made.

    Raises:
        InputError: listing what differs, or the run's recipe cannot be read.
    """
    try:
        document = read_document(folder.recipe)
    except InputError as error:
        problems = error.problems or [error.headline]
        raise InputError(f"{folder.recipe} does not say what the run was begun with.", problems) from None
    _refuse(_differing(document.values, recipe))


def plan_differences(plan: Plan, recipe: Recipe) -> list[str]:
    """Settings of the recipe that the plan was not made with, one sentence each."""
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    pairs = {
        "adapter.rank": (plan.reference_rank, recipe.adapter.rank),
        "adapter.parameters": (plan.asked_parameters, _asked(recipe)),
        "adapter.alpha": (plan.alpha, recipe.adapter.alpha),
        "gora.gamma": (plan.asked("gora.gamma", plan.gamma, recipe.gora.gamma), recipe.gora.gamma),
        "gora.step": (plan.step, recipe.gora.step),
        "gora.scale": (plan.scale, recipe.gora.scale),
        "gora.init_a": (plan.init_a, recipe.gora.init_a),
        "gora.balance": (plan.balance, recipe.gora.balance),
        "gora.rank_min": (plan.rank_min, bounds.smallest),
        "gora.rank_max": (plan.rank_max, bounds.largest),
        "gora.importance": (plan.importance, recipe.gora.importance),
        "gora.budget": (plan.budget, recipe.gora.budget),
        "gora.allocation": (plan.allocation, recipe.gora.allocation),
        "gora.temperature": (plan.rule.temperature, allocation_rule(recipe.gora).temperature),
        "seed": (plan.seed, recipe.seed),
        "gora.steps": (plan.asked("gora.steps", plan.steps, recipe.gora.steps), recipe.gora.steps),
        "gora.micro_batch_size": (plan.micro_batch_size, micro_batch_size(recipe)),
    }
    return [
        f"{key}: {made} in the plan, {wanted} in the recipe" for key, (made, wanted) in pairs.items() if made != wanted
    ]


def _asked(recipe: Recipe) -> int | None:
    return asked_parameters(recipe.adapter) if recipe.gora.budget == "parameters" else None


def _differing(recipe: dict[str, Any], now: Recipe) -> list[str]:
    """A setting that the older recipe does not have counts as its default: it may be new in this gora."""
    try:
        old, new = (_effective(each) for each in (Recipe.model_validate(_named_as_now(recipe)), now))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors()]
        raise InputError("This run's recipe is not valid for this version of gora.", problems) from None
    keys = sorted((old.keys() | new.keys()) - _FREE_TO_CHANGE)
    return [
        f"{key}: {old.get(key)!r} when the run began, {new.get(key)!r} now"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _named_as_now(recipe: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe with the names that its method has now, and with the preset that it had before there were any.

    What is `lora-ga-peft` was `lora-ga` until recipes had `gora.allocation`, which every recipe of a run spells out.
    """
    recipe = {"preset": "paper", **recipe}
    adapter, settings = recipe.get("adapter"), recipe.get("gora")
    earlier = isinstance(settings, dict) and "allocation" not in settings
    if earlier and isinstance(adapter, dict) and adapter.get("method") == "lora-ga":
        return {**recipe, "adapter": {**adapter, "method": "lora-ga-peft"}}
    return recipe


def _effective(recipe: Recipe) -> dict[str, Any]:
    """The settings, with the micro-batch of the gradient pass also where it follows that of training."""
    values = by_key(recipe)
    return values | {"gora.micro_batch_size": values["gora.micro_batch_size"] or values["train.micro_batch_size"]}


def _refuse(differing: list[str]) -> None:
    if differing:
        raise InputError(f"The run was begun with other settings. {_START_OVER}", differing)


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        begun = read_json(checkpoint / PROVENANCE)
        known = {key: begun[key] for key in ("recipe", "plan", "data", "processes")}
        return known | {"base": WeightsNote(**begun["base"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint / PROVENANCE} does not say what the checkpoint is of: {error}") from None


def _plan_hash(folder: RunFolder) -> str | None:
    return sha256_of(folder.plan) if folder.plan.exists() else None
