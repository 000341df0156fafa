"""`results.json`: the facts of a run, as data. Everything that writes or reads it is here.

Its sections: `precompute` and `train` (engine, timings, rates, where sums were placed), the losses and cost of training
at the top level, and `tasks`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from gora import __version__
from gora.errors import InputError
from gora.files import delete, read_json, write_json
from gora.runs.folder import RunFolder

_OLD_NAME = "evaluation.json"
_OF_STAGES = ("precompute", "train")
_VISIBLE = 1e-4
_OF_TRAINING = ("loss", "trainable_parameters", "seconds", "peak_bytes")


class _Peak(BaseModel):
    host: int
    gpu: int | None = None


class _Task(BaseModel):
    model_config = ConfigDict(extra="allow")
    metrics: dict[str, FiniteFloat]


class _Results(BaseModel):
    """What programs rely on, where it is there; the rest of the file is for people."""

    model_config = ConfigDict(extra="allow")
    loss: dict[str, FiniteFloat] = {}
    trainable_parameters: int = 0
    seconds: FiniteFloat = 0.0
    peak_bytes: _Peak | None = None
    tasks: dict[str, dict[str, _Task]] = {}
    precompute: dict[str, Any] = {}
    train: dict[str, Any] = {}


def read_results(folder: RunFolder) -> dict[str, Any]:
    """Everything that is recorded; empty where nothing is.

    Raises:
        InputError: the file cannot be read.
    """
    path = next((path for path in (folder.results, folder.path / _OLD_NAME) if path.exists()), None)
    if path is None:
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Delete it, or restore it.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object. Delete it, or restore it.")
    try:
        _Results.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors()]
        raise InputError(f"{path} is not what gora writes. Delete it, or restore it.", problems[:5]) from None
    return content


def results_of_finished(folder: RunFolder) -> dict[str, Any]:
    """Everything that is recorded of a run that has ended.

    Raises:
        InputError: it cannot be read, or lacks what every run records.
    """
    content = read_results(folder)
    missing = [name for name in _OF_TRAINING if name not in content]
    if content.get("loss"):
        missing += [f"loss.{name}" for name in ("base", "initial", "final") if name not in content["loss"]]
    if missing:
        raise InputError(f"{folder.results} lacks {', '.join(missing)}. Restore it, or train again with --overwrite.")
    return content


def has_losses(folder: RunFolder) -> bool:
    """Whether the last evaluation of training is recorded, which is what ends a run."""
    try:
        return isinstance(read_results(folder).get("loss"), dict)
    except InputError:
        return False


def losses_of(folder: RunFolder) -> dict[str, float]:
    """The evaluation losses of a finished run: `base`, `initial` and `final`; empty without evaluation rows."""
    losses: dict[str, float] = results_of_finished(folder)["loss"]
    return losses


def is_worse(loss: float, base: float) -> bool:
    """Whether an evaluation loss is above that of the base model by more than rounding."""
    return not loss <= base * (1 + _VISIBLE)


def task_results(folder: RunFolder) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and side (`trained`, `base`) what was recorded."""
    tasks: dict[str, dict[str, dict[str, Any]]] = read_results(folder).get("tasks", {})
    return tasks


def record_task(folder: RunFolder, task: str, side: str, result: Mapping[str, Any]) -> None:
    """Add the result of a task; everything else stays."""
    content = read_results(folder)
    content.setdefault("tasks", {}).setdefault(task, {})[side] = result
    write_json(folder.results, content)


def record_stage(folder: RunFolder, stage: str, facts: Mapping[str, Any]) -> None:
    """Replace the facts of a stage (`precompute`, `train`); everything else stays."""
    write_json(folder.results, {**read_results(folder), stage: facts})


def forget_training(folder: RunFolder) -> None:
    """Take back what says that a run is finished, and what was measured of an adapter that is about to be replaced."""
    kept = {stage: facts for stage, facts in read_results(folder).items() if stage == "precompute"}
    if kept:
        write_json(folder.results, kept)
    else:
        delete(folder.results)
    delete(folder.path / _OLD_NAME)


def hold_results(folder: RunFolder, data: str, result: Mapping[str, Any]) -> None:
    """Keep what is known of training before the adapter appears, for `complete_results`.

    Args:
        folder: where.
        data: fingerprint of the training rows.
        result: what `results.json` will hold, without the final loss.
    """
    write_json(folder.pending_results, {"data": data, "result": result})


def held_results(folder: RunFolder) -> dict[str, Any]:
    """What `hold_results` kept: `data` and `result`.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        held = read_json(folder.pending_results)
        return {"data": held["data"], "result": {**held["result"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        lost = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(
            f"{folder.pending_results}, from which the evaluation resumes, {lost}, and {folder.results} has no losses. "
            f"What was trained is whole: use {folder.trained} as it is (gora eval, gora merge), or add --overwrite to "
            "train again."
        ) from None


def complete_results(folder: RunFolder, final: float | None) -> dict[str, float]:
    """Write `results.json` from what was held and the final loss, if there are rows for one; returns all losses."""
    result = held_results(folder)["result"]
    losses: dict[str, float] = result["loss"] | ({} if final is None else {"final": final})
    kept = {stage: facts for stage, facts in read_results(folder).items() if stage in _OF_STAGES}
    verdict = {"worse_than_base": is_worse(losses["final"], losses["base"])} if "final" in losses else {}
    write_json(folder.results, {**kept, **result, "loss": losses, **verdict})
    delete(folder.pending_results)
    return losses


def versions() -> dict[str, str]:
    """Of what computes, and the name of the device."""
    import peft
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "gora": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "device": device,
    }
