"""Steps whose loss or gradient is NaN or infinite are skipped: neither weights nor the optimizer's state see them.

A skipped step counts as a step of the schedule and of the data order, so that all that follows is what it would have
been; only the optimizer does not move. After several in a row training ends, with a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.errors import GoraError
from gora.recipe.schema import TrainSection
from gora.runtime.console import Output
from gora.runtime.world import World
from gora.training.course import Course, SinceLastLog
from gora.training.metrics import Metrics
from gora.training.step_rows import name_rows

_NAMED = 12


class NotFiniteError(GoraError):
    """Training has ended because losses or gradients were NaN or infinite.

    Args:
        message: what happened, and what to do.
        rows: places of the rows concerned.
    """

    def __init__(self, message: str, rows: Sequence[str] = ()) -> None:
        self.rows = tuple(rows)
        super().__init__(message, code="not-finite")


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of a step by its number, for messages; all processes have to ask together.

    Attributes:
        places: where they came from.
        not_finite: where those of them came from whose loss is NaN or infinite by themselves.
    """

    places: Callable[[int], list[str]]
    not_finite: Callable[[int], list[str]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What this process knows of a step when its gradients are complete.

    Attributes:
        loss: this process's part of the mean loss of the step.
        norm: norm of the gradient of all processes, before it was clipped.
        taken: whether the engine has taken the step already; None where the optimizer is still to take it.
    """

    loss: float
    norm: float
    taken: bool | None = None


class SkipNotFinite(TrainerCallback):
    """Looks at every step before the optimizer does.

    Args:
        settings: how many steps in a row may be skipped.
        world: the processes of the run, which skip together.
        measure: what this process knows of the step, given the gradients that the optimizer is about to use.
        rows: the rows of a step.
        course: where steps are counted.
        since_log: what the next line of metrics will say.
        output: where skipped steps and spikes are told.
        metrics: where they are written, each on a line of its own.
    """

    def __init__(
        self,
        *,
        settings: TrainSection,
        world: World,
        measure: Callable[[Sequence[Tensor]], Measured],
        rows: StepRows,
        course: Course,
        since_log: SinceLastLog,
        output: Output,
        metrics: Metrics,
    ) -> None:
        self._limit, self._world, self._measure, self._rows = settings.max_skipped_steps, world, measure, rows
        self._course, self._since_log, self._output, self._metrics = course, since_log, output, metrics
        self._skips = self._spike = self._after_spike = False
        self._loss, self._norm = math.nan, math.nan
        self._culprits: list[str] = []
        self._own_rows = False
        self._usual = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stand between the Trainer and the optimizer."""
        optimizer = kwargs["optimizer"]
        take = optimizer.step

        @wraps(take)
        def step(*arguments: Any, **named: Any) -> Any:
            return None if self._skips else take(*arguments, **named)

        optimizer.step = step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide, the same in all processes, whether the step is taken."""
        groups = kwargs["optimizer"].param_groups
        held = [gradient for group in groups for p in group["params"] if (gradient := _local(p.grad)) is not None]
        mine = self._measure(held)
        told = torch.tensor([mine.loss, float(not math.isfinite(mine.norm))], dtype=torch.float64)
        self._world.sum_everywhere(told)
        self._loss, self._norm = told[0].item() / self._world.size, mine.norm
        self._skips = not math.isfinite(self._loss) or told[1].item() > 0
        self._after_spike, self._spike = self._spike, False
        if not self._skips:
            self._usual = self._course.usual if self._course.recent else self._loss
            rate = groups[0]["lr"] / (groups[0].get("initial_lr") or groups[0]["lr"] or 1.0)
            self._spike = self._course.take(state.global_step + 1, self._loss, rate)
            self._since_log.add(self._loss, self._norm)
            return
        if mine.taken is None:
            self._drop_gradients(groups)
        elif mine.taken:
            raise NotFiniteError(
                f"The loss of step {state.global_step + 1} is {self._loss} and its gradient has the norm {self._norm}, "
                "but DeepSpeed took the step: the weights may hold NaN now, and are not saved. Resume from the latest "
                "checkpoint with --resume, or give --set distributed=ddp."
            )

    def _drop_gradients(self, groups: Sequence[dict[str, Any]]) -> None:
        """What looks at gradients after the step finds none; DeepSpeed, which keeps them elsewhere, has done so."""
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where DeepSpeed has skipped the step, the Trainer leaves the schedule where it is."""
        if self._skips and getattr(kwargs["optimizer"], "step_was_skipped", False):
            kwargs["lr_scheduler"].step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell of a skipped step or a spike, and end training after too many skipped steps."""
        if self._skips:
            self._tell_skipped(state.global_step)
            if self.gave_up:
                control.should_log = control.should_save = control.should_training_stop = True
        elif self._spike:
            self._tell_spike(state.global_step)

    @property
    def gave_up(self) -> bool:
        """Whether as many steps in a row were skipped as may be."""
        return self._course.in_a_row >= self._limit

    def refuse_if_lost(self, reached: int, steps: int, saved: str) -> None:
        """End the run where too many steps in a row were skipped, or every one of it.

        Args:
            reached: the step at which training ended.
            steps: those of the whole run.
            saved: the newest checkpoint, if there is one.

        Raises:
            NotFiniteError: with rows and likely causes.
        """
        every = reached >= steps and self._course.skipped and not self._course.taken
        if not self.gave_up and not every:
            return
        count = self._course.in_a_row
        good = f"step {reached - count}" if self._course.taken else "the start"
        which = f"the latest {count} steps in a row" if count > 1 else f"step {reached}"
        more = "continues after the skipped rows" if reached < steps else "and a larger number complete the run"
        kept = f" {saved} holds what {good} left; --resume {more}." if saved else ""
        values = f" (loss {self._loss}, gradient norm {self._norm})" if self._culprits else ""
        raise NotFiniteError(
            f"The loss or the gradient of {which} was NaN or infinite{values}: training ends at step {reached} "
            f"(train.max_skipped_steps: {self._limit}).{kept}\n{self._causes()}",
            list(dict.fromkeys(self._culprits)),
        )

    def _causes(self) -> str:
        named = name_rows(list(dict.fromkeys(self._culprits)), _NAMED)
        if not named:
            return "metrics.jsonl names the rows of each skipped step."
        if self._own_rows:
            return (
                f"The loss of these rows is not finite by themselves: {named}. Look at them, remove them, or compute "
                "in float32 (train.precision: fp32, model.dtype: float32)."
            )
        return (
            f"Rows: {named}. None of them has such a loss by itself: train.learning_rate or gora.gamma is likely too "
            "high, a tenth of it is a good next try; or the arithmetic is too short (train.precision: fp32)."
        )

    def _tell_skipped(self, step: int) -> None:
        self._course.skip()
        own = self._rows.not_finite(step)
        rows, self._own_rows = self._rows.places(step), bool(own)
        if self._course.in_a_row == 1:
            self._culprits = []
        self._culprits += own or rows
        told = {"loss": told_number(self._loss), "grad_norm": told_number(self._norm), "rows": name_rows(rows)}
        if own:
            told["not_finite"] = name_rows(own)
        self._metrics.add(step, skipped=told)
        which = "the loss of these rows is not finite" if own else "its rows"
        named = name_rows(own or rows, _NAMED)
        self._output.warn(
            f"step {step} is skipped: loss {self._loss}, gradient norm {self._norm}; {which}: {named}. Skipped so far: "
            f"{self._course.skipped}, in a row: {self._course.in_a_row} of at most {self._limit}."
        )

    def _tell_spike(self, step: int) -> None:
        rows = self._rows.places(step)
        self._metrics.add(step, spike={"loss": self._loss, "usual": self._usual, "rows": name_rows(rows)})
        values = f"loss {self._loss:.4f} at step {step}, usually {self._usual:.4f}"
        if not self._after_spike:
            self._output.say(f"spike     {values}; rows: {name_rows(rows, _NAMED)}")


def told_number(value: float) -> float | str:
    """As JSON can say it: NaN and infinity are text."""
    return value if math.isfinite(value) else str(value)


def _local(gradient: Tensor | None) -> Tensor | None:
    """The part of a gradient that this process holds."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
