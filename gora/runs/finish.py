"""What is left once the adapter is there: the last evaluation, which a run that was stopped before it makes up for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gora.adapters.load import load_adapter
from gora.errors import InputError
from gora.files import write_json
from gora.recipe.schema import Recipe
from gora.runs.folder import RunFolder
from gora.runs.loss import evaluate_loss
from gora.runs.resume import check_same_settings
from gora.runs.setup import Setup
from gora.runtime.console import output
from gora.runtime.world import World


def is_finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether an earlier run of this recipe has left everything that training makes.

    Raises:
        InputError: what lies here was made with other settings.
    """
    if folder.trained is None or not folder.evaluation.exists():
        return False
    check_same_settings(folder, recipe)
    return True


def losses_of(folder: RunFolder) -> dict[str, float]:
    """The losses of a run that is finished."""
    losses: dict[str, float] = json.loads(folder.evaluation.read_text(encoding="utf-8"))["loss"]
    return losses


def note_before_saving(folder: RunFolder, data: str, result: dict[str, Any]) -> None:
    """Keep what is known before the adapter appears, and delete what was made of an earlier one.

    Args:
        folder: where.
        data: fingerprint of the rows.
        result: `results.json` without the final loss.
    """
    shutil.rmtree(folder.merged, ignore_errors=True)
    folder.evaluation.unlink(missing_ok=True)
    write_json(folder.pending_results, {"data": data, "result": result})


def complete(folder: RunFolder, world: World, final: float | None) -> dict[str, float]:
    """Write `results.json` from what was noted and the final loss, if there are rows for one; returns all losses."""

    def write() -> dict[str, float]:
        result = _noted(folder)["result"]
        losses: dict[str, float] = result["loss"] | ({} if final is None else {"final": final})
        write_json(folder.results, {**result, "loss": losses})
        folder.pending_results.unlink()
        return losses

    return world.from_main(write)


def finish(recipe: Recipe, folder: RunFolder, trained: Path, *, trust_remote_code: bool = False) -> dict[str, float]:
    """Evaluate what an earlier run has trained, and write `results.json`.

    Args:
        recipe: the recipe.
        folder: of that run.
        trained: its adapter, or its model.
        trust_remote_code: let the model run Python code of its own.

    Returns:
        The losses.

    Raises:
        InputError: it was trained with other settings or rows, or what was noted before the end is missing.
    """
    check_same_settings(folder, recipe)
    data = _noted(folder)["data"]
    output.say(f"resuming  {trained} is trained; its evaluation is left to do")
    # Full fine-tuning leaves a model in the place of the base.
    base = {"name": str(trained), "revision": None} if trained == folder.model else {}
    section = recipe.model.model_copy(update=base)
    with output.logging_to(folder.log, "train"):
        setup = Setup.of(recipe.model_copy(update={"model": section}), trust_remote_code=trust_remote_code)
        if setup.data.fingerprint != data:
            raise InputError(f"The rows are not those that {trained} was trained on. Use --overwrite to begin anew.")
        losses = complete(folder, setup.world, _final_loss(setup, folder, trained))
        output.say(f"adapter   {trained}")
    return losses


def _final_loss(setup: Setup, folder: RunFolder, trained: Path) -> float | None:
    if not setup.data.eval:
        return None
    model = setup.load_model()
    wrapped = load_adapter(model, trained) if trained == folder.adapter else model
    with output.terminal.status("evaluating"):
        return evaluate_loss(wrapped, setup)


def _noted(folder: RunFolder) -> dict[str, Any]:
    try:
        noted = json.loads(folder.pending_results.read_text(encoding="utf-8"))
        return {"data": noted["data"], "result": {**noted["result"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.pending_results}, which the evaluation goes on from, cannot be read: {error}. Use --overwrite."
        ) from None
