"""Gradient passes that several runs of a comparison share.

Ranks and initial values follow from the mean gradients, so that runs which differ in those only need one pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gora import manifest
from gora.comparison.trials import Trial
from gora.files import delete
from gora.methods import METHODS
from gora.recipe.derived import by_key
from gora.recipe.schema import Recipe
from gora.runs.folder import RunFolder
from gora.runs.state import Progress, RunState, find_progress

# Settings that come after the gradients. One that is in neither list counts as one that gradients depend on.
_AFTER = {
    "description",
    "output",
    "preset",
    "adapter.method",
    "adapter.dora",
    "adapter.rank",
    "adapter.parameters",
    "adapter.alpha",
    "adapter.dropout",
    "gora.gamma",
    "gora.step",
    "gora.scale",
    "gora.init_a",
    "gora.balance",
    "gora.rank_min",
    "gora.rank_max",
    "gora.budget",
    "gora.allocation",
    "gora.temperature",
    "gora.importance",
}
_BEFORE_IN_TRAIN = {"train.micro_batch_size", "train.precision", "train.activation_checkpointing"}


@dataclass(frozen=True)
class SharedPass:
    """One gradient pass.

    Attributes:
        folder: where it is run and keeps the gradients.
        trials: the runs that start from them, at least two.
    """

    folder: RunFolder
    trials: tuple[Trial, ...]

    @property
    def needed(self) -> bool:
        """Whether a run still waits for its gradients."""
        waiting = any(trial.progress.state < RunState.PLANNED for trial in self.trials)
        return waiting and manifest.damage(self.folder.gradients) is not None

    @property
    def overrides(self) -> tuple[str, ...]:
        """Settings of the pass: those of its first run, in a folder of its own."""
        return (*self.trials[0].overrides, f"output={self.folder.path}")

    @property
    def progress(self) -> Progress:
        """How far the pass has come."""
        return find_progress(self.folder)

    def drop_if_done(self) -> bool:
        """Delete the gradients once no run needs them any more; they are as large as the adapted layers."""
        done = self.folder.gradients.exists() and all(trial.finished for trial in self.trials)
        if done:
            delete(self.folder.gradients)
        return done


def shared_passes(trials: Iterable[Trial], destination: Path) -> list[SharedPass]:
    """The passes of all runs that need a plan and are not the only one with their gradients."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        # A first step is tried on the model, which a plan from kept gradients is made without; and a pass that ends by
        # itself may end elsewhere with other settings.
        settings = trial.recipe.gora
        if METHODS[trial.recipe.adapter.method].needs_plan and "auto" not in (settings.gamma, settings.steps):
            groups.setdefault(_identity(trial.recipe), []).append(trial)
    return [
        SharedPass(RunFolder(destination / "gradients" / f"seed={group[0].seed}-{identity}"), tuple(group))
        for identity, group in groups.items()
        if len(group) > 1
    ]


def _identity(recipe: Recipe) -> str:
    settings = {key: value for key, value in by_key(recipe).items() if not _is_after(key)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _is_after(key: str) -> bool:
    in_training = key.startswith(("train.", "evaluation.")) and key not in _BEFORE_IN_TRAIN
    return key in _AFTER or in_training
