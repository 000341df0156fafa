"""An optimizer step that fits: where memory runs out in it, it is repeated in smaller micro-batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gora.estimate.sizes import next_smaller
from gora.runtime.out_of_memory import is_out_of_memory, release_memory

Step = dict[str, Any]


class StepOutOfMemory(MemoryError):
    """Memory ran out in a step, of which nothing is left: random state and weights are those before it."""


class FittingSteps:
    """Takes each step as it comes, and in smaller micro-batches once one did not fit.

    The gradient of a step is the sum over its micro-batches, each normalised by the tokens of the step. A step that is
    repeated in smaller ones is therefore the step of a run that was planned with them.

    Args:
        rows: of a micro-batch.
        device: what computes.
        forget: drops the gradients of the step so far.
        remake: the step that is being taken, in micro-batches of so many rows.
        halved: told of the new number of rows; None where there may not be fewer.
    """

    def __init__(
        self,
        rows: int,
        device: torch.device,
        *,
        forget: Callable[[], None],
        remake: Callable[[int], Step],
        halved: Callable[[int], None] | None,
    ) -> None:
        self.rows, self._planned, self._device = rows, rows, device
        self._forget, self._remake, self._halved = forget, remake, halved

    def run(self, step: Step, take: Callable[[Step], Tensor]) -> Tensor:
        """Both passes of a step.

        Args:
            step: as it was planned.
            take: runs all its micro-batches.

        Raises:
            StepOutOfMemory: it does not fit.
        """
        before = RandomState(self._device)
        if self.rows < self._planned:
            step = self._remake(self.rows)
        while True:
            try:
                return take(step)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # Its frames hold what filled the memory.
                failure = error.with_traceback(None)
            self._forget()
            release_memory()
            before.restore()
            smaller = next_smaller(self.rows)
            if self._halved is None or smaller is None:
                raise StepOutOfMemory(str(failure).strip() or type(failure).__name__)
            self.rows = smaller
            self._halved(smaller)
            step = self._remake(smaller)


class RandomState:
    """The random generators of this process, as they were when this was made.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Bring them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
