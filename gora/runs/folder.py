"""The run folder: where everything that a run makes has its place."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gora.errors import InputError

PROVENANCE = "provenance.json"
"""In a checkpoint: recipe, plan and rows of its run."""


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of one run."""

    path: Path

    @classmethod
    def of(cls, output: str | None) -> "RunFolder":
        """The folder that a recipe names.

        Raises:
            InputError: it names none, or something that is no folder.
        """
        if not output:
            raise InputError("output: a run needs a folder of its own, such as runs/my-run.")
        path = Path(output).expanduser()
        if path.exists() and not path.is_dir():
            raise InputError(f"output: {output} is a file; a run needs a folder.")
        return cls(path)

    @property
    def recipe(self) -> Path:
        """The fully resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Ranks and initial values."""
        return self.path / "plan.safetensors"

    @property
    def pass_checkpoint(self) -> Path:
        """Gradient sums of an unfinished pass."""
        return self.path / "gradients.checkpoint"

    @property
    def gradients(self) -> Path:
        """Mean gradients that were kept."""
        return self.path / "gradients"

    @property
    def adapter(self) -> Path:
        """The trained adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folders named `checkpoint-STEP`."""
        return self.path / "checkpoints"

    @property
    def initial(self) -> Path:
        """A and B that training began with, for methods that move a part of the base weights into them."""
        return self.path / "initial.safetensors"

    @property
    def model(self) -> Path:
        """The trained model of `adapter.method: full`."""
        return self.path / "model"

    @property
    def trained(self) -> Path | None:
        """The adapter or the model that training has left, if it has."""
        return next((made for made in (self.adapter, self.model) if made.exists()), None)

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """Losses before and after, and the figures of tasks."""
        return self.path / "results.json"

    @property
    def evaluation(self) -> Path:
        """What was asked and answered, a folder for each task."""
        return self.path / "evaluation"

    @property
    def pending_results(self) -> Path:
        """What `results.json` will hold, before the last evaluation."""
        return self.path / "results.partial"

    @property
    def merged(self) -> Path:
        """The merged model of `gora run --merge`."""
        return self.path / "merged"

    @property
    def log(self) -> Path:
        """Everything that was printed."""
        return self.path / "log.txt"

    def refuse_to_replace(self, *made: Path, how: str) -> None:
        """End when an earlier run has left one of these files here.

        Raises:
            InputError: it has; `how` says what the user can do.
        """
        if found := [path for path in made if path.exists()]:
            raise InputError(
                f"{self.path} already holds {', '.join(path.name for path in found)} of an earlier run. {how}"
            )

    def refuse_earlier_run(self, *made: Path, how: str) -> None:
        """As `refuse_to_replace`, for checkpoints too: an empty folder of them is not one."""
        newest = self.newest_checkpoint()
        self.refuse_to_replace(*made, *([newest] if newest else []), how=how)

    def pass_checkpoint_of(self, index: int, size: int) -> Path:
        """Where one of several processes keeps its gradient sums.

        Raises:
            InputError: the unfinished pass that lies here had another number of processes.
        """
        begun = {int(path.name.rpartition("-")[2]) for path in self.pass_checkpoint.glob("process-*-of-*")}
        if (self.pass_checkpoint / "state.json").exists():
            begun.add(1)
        if begun - {size}:
            raise InputError(
                f"{self.pass_checkpoint} was begun with {min(begun)} processes; this run has {size}. "
                "Start as many again, or start over with --overwrite."
            )
        return self.pass_checkpoint / f"process-{index}-of-{size}" if size > 1 else self.pass_checkpoint

    def drop_pass_checkpoint(self) -> None:
        """Delete the gradient sums of an unfinished pass."""
        shutil.rmtree(self.pass_checkpoint, ignore_errors=True)

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, if there is one."""
        return next(reversed(self.all_checkpoints()), None)

    def all_checkpoints(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
