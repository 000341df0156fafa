"""Checkpoints that appear whole, with all that gora needs to resume, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from gora import manifest
from gora.disk import writing
from gora.files import delete, publish, write_json
from gora.runs.folder import PROVENANCE, RunFolder
from gora.runtime.world import World
from gora.training.course import FILE as COURSE
from gora.training.course import Course
from gora.training.room import needed_by_next
from gora.training.saved_state import reading
from gora.training.step_rows import STREAM, RunSteps


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is saved beside what the Trainer saves, and where.

    Attributes:
        folder: of the run.
        world: its processes.
        number: how many of the newest checkpoints are kept.
        bytes_at_least: of a checkpoint.
        provenance: what the run is of.
        course: how training goes.
        steps: the rows of each step, of which a stream has a state.
    """

    folder: RunFolder
    world: World
    number: int
    bytes_at_least: int
    provenance: dict[str, Any]
    course: Course
    steps: RunSteps


class CheckpointTrainer(Trainer):
    """The Trainer with whole checkpoints.

    Attributes:
        kept: set before anything is saved.
    """

    kept: Kept
    _stage: Path | None = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def save_last_step(self) -> None:
        """Save a checkpoint of the last step that was finished, unless there is one."""
        step = self.state.global_step
        if step and not (self.kept.folder.checkpoints / f"checkpoint-{step}").exists():
            assert self.model is not None
            self._save_checkpoint(self.model, None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        final = self.kept.folder.checkpoints / f"checkpoint-{self.state.global_step}"
        with self._published_by_main(final) as aside:
            # The Trainer chooses the name below the folder that it is given, so what it makes is moved up afterwards.
            self._stage = aside
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
            self.kept.world.barrier()
            if self.kept.world.main:
                for file in (aside / final.name).iterdir():
                    file.rename(aside / file.name)
                (aside / final.name).rmdir()
                write_json(aside / PROVENANCE, self.kept.provenance)
                write_json(aside / COURSE, self.kept.course.as_json())
                if (state := self.kept.steps.state(self.state.global_step)) is not None:
                    write_json(aside / STREAM, state)
                manifest.seal(aside)
        if self.kept.world.main:
            self._drop_old_checkpoints()
        self.kept.world.barrier()

    @contextmanager
    def _published_by_main(self, final: Path) -> Iterator[Path]:
        """As `publish`, for a folder that all processes write into."""
        if not self.kept.world.main:
            aside = Path(self.kept.world.from_main(str))
            with writing(final, aside=aside):
                yield aside
            return
        with publish(final, needed_by_next(self.kept.folder, self.kept.bytes_at_least)) as aside:
            yield Path(self.kept.world.from_main(lambda: str(aside)))

    def _drop_old_checkpoints(self) -> None:
        for folder in self.kept.folder.all_checkpoints()[: -self.kept.number]:
            delete(folder)
