"""How far a run has come, each state with the file that proves it, and what each command does in each state.

Nothing else in gora asks which files are there. A file proves a state only if it is as it was written: checkpoints,
adapters and models are compared with their manifests, the plan with its checksum.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from gora import manifest
from gora.errors import InputError
from gora.runs.failure import REFUSED
from gora.runs.folder import RunFolder
from gora.runs.results import has_losses

Mode = Literal["new", "resume", "overwrite"]
"""What the user wants: no run is expected in the folder yet; the one there continues; another one takes its place."""
Verb = Literal["precompute", "train", "run"]


class RunState(IntEnum):
    """How far a run has come; each state includes what came before it."""

    EMPTY = 0
    COLLECTING = 1
    PLANNED = 2
    TRAINING = 3
    TRAINED = 4
    FINISHED = 5


PROOF = {
    RunState.EMPTY: "none of the files below",
    RunState.COLLECTING: "`gradients.checkpoint/`: gradient sums of an unfinished pass, with their manifest",
    RunState.PLANNED: "`plan.safetensors`, with its checksum",
    RunState.TRAINING: "`checkpoints/checkpoint-N/`, with its manifest",
    RunState.TRAINED: "`adapter/` (full fine-tuning: `model/`), with its manifest",
    RunState.FINISHED: "the same, and the losses in `results.json`",
}
"""The file that proves each state; where several are there, the last of them counts."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What was found in a run folder.

    Attributes:
        state: how far the run has come.
        trained: the adapter or model, if it is whole.
        checkpoint: the newest whole checkpoint of training.
        damage: one line for each file that should prove a later state, and is damaged.
    """

    state: RunState
    trained: Path | None = None
    checkpoint: Path | None = None
    damage: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the other processes of the run."""
        paths = {name: str(path) if (path := getattr(self, name)) else None for name in ("trained", "checkpoint")}
        return {"state": int(self.state), "damage": list(self.damage), **paths}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Progress:
        """What process 0 has found."""
        trained, checkpoint = (Path(told[name]) if told[name] else None for name in ("trained", "checkpoint"))
        return cls(state=RunState(told["state"]), trained=trained, checkpoint=checkpoint, damage=tuple(told["damage"]))


def find_progress(folder: RunFolder) -> Progress:
    """Look at a run folder and read what proves its state; never raises for what it finds."""
    damage = []
    if (trained := folder.trained) is not None:
        if (reason := manifest.damage(trained)) is None:
            state = RunState.FINISHED if has_losses(folder) else RunState.TRAINED
            return Progress(state=state, trained=trained)
        damage.append(f"{trained} is damaged: {reason}.")
    for checkpoint in reversed(folder.all_checkpoints()):
        if (reason := manifest.damage(checkpoint)) is None:
            return Progress(state=RunState.TRAINING, checkpoint=checkpoint, damage=tuple(damage))
        damage.append(f"{checkpoint} is damaged: {reason}.")
    if damage:
        return Progress(state=RunState.TRAINING, damage=tuple(damage))
    if folder.plan.exists():
        return Progress(state=RunState.PLANNED)
    return Progress(state=RunState.COLLECTING if folder.pass_checkpoint.exists() else RunState.EMPTY)


def settle(folder: RunFolder, progress: Progress, verb: Verb, mode: Mode, *, needs_plan: bool) -> None:
    """Refuse a command that would replace something without being told to, or that has nothing to resume.

    Args:
        folder: the run folder.
        progress: what was found there.
        verb: the command.
        mode: what the user wants of the folder.
        needs_plan: whether training starts from a plan.

    Raises:
        InputError: with what is there and what the user can do.
    """
    begins = RunState.PLANNED if verb == "train" and needs_plan else RunState.EMPTY
    ends = RunState.PLANNED if verb == "precompute" else RunState.FINISHED
    if mode == "new" and progress.state > begins:
        _refuse_to_replace(folder, begins, resumable=progress.state < ends or verb == "run")
    if mode == "resume" and progress.state >= ends and verb != "run":
        finished = folder.plan if verb == "precompute" else progress.trained
        raise InputError(
            f"{finished} is finished: there is nothing to resume. Add --overwrite to make it again.", code=REFUSED
        )
    if mode == "resume" and progress.state == RunState.TRAINING and progress.checkpoint is None:
        raise InputError(
            f"{folder.path} holds no checkpoint that can be resumed. Start training over with --overwrite.",
            progress.damage,
            code=REFUSED,
        )


def _refuse_to_replace(folder: RunFolder, begins: RunState, *, resumable: bool) -> None:
    made = [folder.adapter, folder.model, *folder.all_checkpoints()[-1:]]
    if begins < RunState.PLANNED:
        made = [folder.plan, folder.pass_checkpoint, *made]
    names = ", ".join(path.name for path in made if path.exists())
    resume = "--resume to continue it, " if resumable else ""
    raise InputError(
        f"{folder.path} already holds {names} of an earlier run. Add {resume}--overwrite to replace it, or give "
        "another folder with --set output=FOLDER.",
        code=REFUSED,
    )
