"""The run folder: where everything that a run makes has its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gora.errors import InputError

PROVENANCE = "provenance.json"
"""In a checkpoint: recipe, plan, rows and base of its run."""


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of one run."""

    path: Path

    @classmethod
    def of(cls, output: str | None) -> RunFolder:
        """The folder that a recipe names.

        Raises:
            InputError: it names none, or something that is not a folder.
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
        """Checkpoint of an unfinished gradient pass."""
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
    def rejected(self) -> Path:
        """An adapter that was trained and does not fit the untouched base: kept, and never taken for the result."""
        return self.path / "adapter.rejected"

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
        """The trained model of a method that saves a whole one."""
        return self.path / "model"

    @property
    def trained(self) -> Path | None:
        """The adapter or the model that training has left, if it has."""
        return next((made for made in (self.adapter, self.model) if made.exists()), None)

    @property
    def decisions(self) -> Path:
        """What gora decided for the run, and on what grounds."""
        return self.path / "decisions.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def best(self) -> Path:
        """The trained values with the least evaluation loss so far, with `train.keep: best`."""
        return self.path / "best.safetensors"

    @property
    def samples(self) -> Path:
        """What the model wrote at each evaluation, one JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def page(self) -> Path:
        """The run on one page, for a browser."""
        return self.path / "report.html"

    @property
    def results(self) -> Path:
        """Losses, cost, facts of each stage, and the figures of tasks."""
        return self.path / "results.json"

    @property
    def pending_results(self) -> Path:
        """What `results.json` will hold once the last evaluation is done."""
        return self.path / "results.partial"

    @property
    def failure(self) -> Path:
        """Why the last command ended early; not there when it did not."""
        return self.path / "failure.json"

    @property
    def evaluation(self) -> Path:
        """Questions and answers, a folder for each task."""
        return self.path / "evaluation"

    @property
    def merged(self) -> Path:
        """The merged model of `gora run --merge`."""
        return self.path / "merged"

    @property
    def log(self) -> Path:
        """Everything that was printed."""
        return self.path / "log.txt"

    def pass_checkpoint_of(self, index: int, size: int) -> Path:
        """Where one of several processes keeps its gradient sums.

        Raises:
            InputError: the unfinished pass in this folder had another number of processes.
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

    def all_checkpoints(self) -> list[Path]:
        """All checkpoints, whole or not, the oldest first."""
        named = [path for path in self.checkpoints.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
        return sorted(named, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.partition("-")[2])
