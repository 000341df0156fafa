"""What happens around training steps: metrics and progress, stopping on request, saving in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.recipe.schema import TrainSection
from gora.runs.loss import EvaluationLoss
from gora.runtime.console import Output
from gora.runtime.engine import Engine
from gora.runtime.interrupt import StopRequest
from gora.runtime.phases import phases
from gora.runtime.progress import Meter
from gora.runtime.world import World
from gora.training.groups import check_groups, group_table
from gora.training.metrics import Metrics

OF_SOURCE = "eval_loss/"
"""Before the name of a source: its evaluation loss, among what is logged."""


class Report(TrainerCallback):
    """Shows the optimizer's groups and the progress, and writes metrics.jsonl."""

    def __init__(
        self,
        output: Output,
        metrics: Metrics,
        wanted_groups: list[dict[str, Any]],
        engine: Engine,
        unit: str = "tokens",
    ) -> None:
        self._output, self._metrics, self._wanted, self.unit = output, metrics, wanted_groups, unit
        self._engine = engine
        self.check: Callable[[], str] | None = None
        """Sees that the engine asked for is the one that runs, and says which it is."""
        self.lap: Callable[[], dict[str, Any]] | None = None
        """Says how fast training went since the last line."""
        self.engine_text = ""
        self._rates: dict[str, float] = {}
        self._facts = ""
        self._first_step, self._steps_taken = ExitStack(), 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check and print which engine runs, and what it made of the parameter groups."""
        if self.check is not None:
            self.engine_text = self.check()
            self._output.say(f"engine    {self.engine_text}")
        check_groups(kwargs["optimizer"].param_groups, self._wanted, emptied=self._engine.stage == 3)
        self._output.say(group_table(self._wanted))
        self._tokens = state.num_input_tokens_seen
        if self.lap is not None:
            self.lap()  # what came before the first step belongs to no line
        self._meter = Meter(self._output, "training", state.max_steps, state.global_step, unit=self.unit)
        self._meter.__enter__()
        self._first_step.enter_context(phases.within("first step"))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the learning rates of the step that is about to be taken."""
        self._rates = {f"learning_rate_{g['name'].lower()}": g["lr"] for g in kwargs["optimizer"].param_groups}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the progress bar; say after the first step what it took to come there."""
        if self._steps_taken == 0:
            self._first_step.close()
            self._output.log(f"startup   {phases.text()}")
        self._steps_taken += 1
        seen = state.num_input_tokens_seen
        self._meter.advance(int(seen - self._tokens), self._facts)
        self._tokens = seen

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write one line of metrics."""
        logs = kwargs["logs"]
        if "loss" in logs:
            self._facts = f"loss {logs['loss']:.4f} at step {state.global_step}"
            norm = {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}
            values = {"epoch": state.epoch, "loss": logs["loss"], **norm, **self._rates}
            rate = self.lap() if self.lap is not None else {}
            rows = {"rows": logs["rows"]} if "rows" in logs else {}
            self._metrics.add(state.global_step, **values, **rows, tokens=int(state.num_input_tokens_seen), **rate)
            pace = ", ".join(part for part in (pace_text(rate, self.unit), f"{self._meter.time_left} left") if part)
            self._output.log(f"step {state.global_step}: loss {logs['loss']:.4f}  {pace}")
        elif "eval_loss" in logs:
            of_each = {key.removeprefix(OF_SOURCE): value for key, value in logs.items() if key.startswith(OF_SOURCE)}
            loss, more = EvaluationLoss(logs["eval_loss"], of_each), {"eval_loss_by_source": of_each} if of_each else {}
            self._metrics.add(state.global_step, epoch=state.epoch, eval_loss=loss.mean, **more)
            self._output.say(f"step {state.global_step}: evaluation loss {loss.text()}")

    def stop(self) -> None:
        """Take the progress bar down, also after an error."""
        self._first_step.close()
        if hasattr(self, "_meter"):
            self._meter.__exit__(None, None, None)

    @property
    def seconds(self) -> float:
        """Duration of training so far."""
        return self._meter.seconds

    @property
    def tokens_per_second(self) -> float:
        """Mean rate over training."""
        return self._meter.tokens_per_second


def pace_text(lap: dict[str, Any], unit: str = "tokens") -> str:
    """A lap in words."""
    if not lap:
        return ""
    rate, computed = lap["tokens_per_second"], lap["computed_per_second"]
    parts = [f"{rate:,.0f} {unit}/s"]
    if computed > rate:
        parts.append(f"{computed:,.0f} with padding")
    if "peak_share" in lap:
        parts.append(f"{lap['peak_share']:.0%} of the bf16 peak")
    parts.append(f"{lap['waiting']:.1%} waiting for rows")
    if "gpu_bytes" in lap:
        parts.append(f"GPU {lap['gpu_bytes'] / 1e9:.1f} GB")
    return ", ".join(parts)


class SaveAndLog(TrainerCallback):
    """Logs at every step that is saved, so that a resumed run writes the same lines as an unbroken one."""

    def __init__(self, settings: TrainSection) -> None:
        self._settings = settings

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a log line."""
        last = state.global_step == state.max_steps
        if last or (self._settings.save_steps and state.global_step % self._settings.save_steps == 0):
            control.should_log = True


class StopOrSave(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which a signal arrived; saves one when it is time to.

    Args:
        request: whether a signal has come.
        world: the processes of the run, which stop and save after the same step.
        minutes: between two checkpoints, by the clock of process 0; None saves none for the time that has passed.
        clock: seconds that have passed since any moment.
    """

    def __init__(
        self, request: StopRequest, world: World, minutes: float | None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._request, self._world, self._clock = request, world, clock
        self._seconds = math.inf if minutes is None else 60 * minutes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is older than this is saved."""
        self._saved = self._clock()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restart the clock, whatever the checkpoint was saved for."""
        self._saved = self._clock()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the request and the clock."""
        due = self._world.main and self._clock() - self._saved >= self._seconds
        # The signal may reach the processes in different steps, and clocks differ.
        told = torch.tensor([bool(self._request), due], dtype=torch.int64)
        self._world.sum_everywhere(told)
        if state.global_step < state.max_steps and told.any():
            control.should_log = control.should_save = True
            control.should_training_stop = control.should_training_stop or bool(told[0])
