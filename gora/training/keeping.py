"""What evaluations on the way are for: keeping the best values, and ending a training that no longer gets better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.adapters.save import adapter_values
from gora.errors import InputError
from gora.files import publish
from gora.recipe.schema import TrainSection
from gora.runtime.console import Output
from gora.runtime.world import World
from gora.training.course import Course
from gora.training.metrics import Metrics

Figure = Callable[[], tuple[str, float]]
"""Asks a task for the name and value of its main figure."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The values of the best evaluation.

    Attributes:
        step: after which they were there.
        loss: their evaluation loss.
        values: of everything that is trained, by name, on the CPU.
    """

    step: int
    loss: float
    values: dict[str, Tensor]


class KeepBest(TrainerCallback):
    """Writes the values of every evaluation that is the best so far, and ends training after enough that are not.

    Args:
        model: what is trained; its values are whole in each process.
        settings: says whether to keep, and how patient to be.
        course: holds the best loss so far, and is saved with every checkpoint.
        file: where the best values go.
        output: where figures and the end are said.
        world: the processes, of which process 0 writes, and asks a task.
        figure: the name and value of a task's main figure, which decides in the loss's place; None where none does.
        metrics: gets the figure of each evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSection,
        course: Course,
        file: Path,
        output: Output,
        *,
        world: World,
        metrics: Metrics,
        figure: Figure | None = None,
    ) -> None:
        self._model, self._settings, self._course = model, settings, course
        self._file, self._output, self._world = file, output, world
        self._metrics, self._figure = metrics, figure

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare the evaluation with the best so far."""
        if self._course.evaluate(state.global_step, kwargs["metrics"]["eval_loss"], self._asked(state.global_step)):
            if self._settings.keep == "best" and self._world.main:
                _write_best(self._file, self._model, self._course)
        elif self._course.is_over(self._settings.patience) and state.global_step < state.max_steps:
            control.should_training_stop = control.should_log = True
            self._output.say(
                f"enough    {self._settings.patience} evaluations in a row were not better than that of step "
                f"{self._course.best_step} ({self._course.best_loss:.4f})"
            )

    def _asked(self, step: int) -> float | None:
        if self._figure is None:
            return None
        name, value = self._world.from_main(self._figure)
        self._metrics.add(step, **{name: value})
        self._output.say(f"figure    {name} {value:.4f}")
        return value


def _write_best(file: Path, model: nn.Module, course: Course) -> None:
    # A copy: safetensors refuses values that share memory.
    values = {name: value.clone().contiguous() for name, value in adapter_values(model).items()}
    about = {"step": str(course.best_step), "loss": repr(course.best_loss)}
    with publish(file, sum(value.nbytes for value in values.values())) as aside:
        save_file(values, aside, metadata=about)


def read_best(file: Path) -> Best | None:
    """The best values; None where there are none.

    Raises:
        InputError: the file is damaged.
    """
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        return Best(step=int(about["step"]), loss=float(about["loss"]), values=values)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}. Start training over with --overwrite.") from None


def restore(model: nn.Module, best: Best) -> None:
    """Put the best values back into the model.

    Raises:
        InputError: they are of another model.
    """
    held = dict(model.named_parameters())
    if stray := best.values.keys() - held.keys():
        raise InputError(f"The best values are of another model: {', '.join(sorted(stray)[:3])} are not in this one.")
    with torch.no_grad():
        for name, value in best.values.items():
            held[name].copy_(value)
