"""When each training step ended, and how many tokens it had."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback


class Clock:
    """Notes when each step ended, and the tokens in it.

    Args:
        device: what computes.
        counted: of how many steps, the last ones, the rate is the median.
    """

    def __init__(self, device: torch.device, counted: int) -> None:
        self._device, self._counted, self.times, self.tokens = device, counted, [time.perf_counter()], []

    def step(self, tokens: int) -> None:
        """A step of so many tokens of rows has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(tokens)

    def facts(self) -> dict[str, Any]:
        """Rate over the last steps: the median, and each; and the seconds to the end of the first step."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        rates = [tokens / each for tokens, each in zip(self.tokens, seconds, strict=True)][1:][-self._counted :]
        rounded = [round(rate, 1) for rate in rates]
        return {"rate": statistics.median(rates), "rates": rounded, "first_step": round(seconds[0], 1)}


class Told(TrainerCallback):
    """Tells the clock of each step.

    Args:
        clock: the clock.
        tokens: all tokens of rows so far.
    """

    def __init__(self, clock: Clock, tokens: Callable[[], int]) -> None:
        self._clock, self._tokens, self._before = clock, tokens, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        tokens = self._tokens()
        self._clock.step(tokens - self._before)
        self._before = tokens
