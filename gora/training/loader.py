"""Makes the batches of the next steps while a step is computed, and measures how long training waits for them."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from gora.runtime.starter import die_with_parent
from gora.runtime.world import World
from gora.training.batches import StepBatches, StepCollator, StepNumbers

_AHEAD = 2
"""Steps that a worker has ready."""
_SHARED_MEMORY = Path("/dev/shm")
_ROOM = 2**30
IMAGE_WORKERS = 8
"""Workers that decode images for one process."""


@dataclass
class Waited:
    """Seconds in which training waited for data.

    Attributes:
        last: before the latest step.
        total: before all steps of this command.
    """

    last: float = 0.0
    total: float = 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time of the block as that of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.last = time.perf_counter() - start
            self.total += self.last


class StepLoader(DataLoader[Any]):
    """The steps of an epoch. Workers are past its end when it comes: they make the first steps of the next one.

    Args:
        batches: the steps.
        numbers: those of an epoch.
        last: the last step of the run.
        settings: of torch's loader.
    """

    def __init__(self, batches: StepBatches, numbers: StepNumbers, last: int, **settings: Any) -> None:
        super().__init__(batches, batch_sampler=numbers, **settings)
        self._numbers = numbers
        self._whole = DataLoader(batches, batch_sampler=_Remaining(numbers, last), **settings)
        self._next, self._steps = 0, iter(())

    def __iter__(self) -> Any:
        for place, (step,) in enumerate(self._numbers):
            if place == 0:
                self._go_on_from(step)
            made = next(self._steps, None)
            if made is None:
                return
            self._next = step + 1
            yield made

    def close(self) -> None:
        """End the workers."""
        self._next, self._steps = 0, iter(())

    def _go_on_from(self, step: int) -> None:
        if self._next == step:
            # A loader draws a number when it starts: where it goes on, dropout would have other numbers.
            torch.empty((), dtype=torch.int64).random_()
        else:
            self.close()
            self._steps = iter(self._whole)


class _Remaining(Sampler[list[int]]):
    """The numbers from the first of the chosen epoch to the last of the run."""

    def __init__(self, numbers: StepNumbers, last: int) -> None:
        self._numbers, self._last = numbers, last

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([step] for step in range(self._numbers.first, self._last + 1))


def step_loader(
    batches: StepBatches, numbers: StepNumbers, collator: StepCollator, *, last: int, workers: int, pin: bool
) -> StepLoader:
    """A loader whose items are whole steps, in their order with any number of workers.

    Args:
        batches: the steps.
        numbers: which of them.
        collator: makes batches.
        last: the last step of the run.
        workers: processes that make them ahead; 0 makes each when it is asked for.
        pin: whether they are put into memory from which a GPU copies by itself.
    """
    ahead: dict[str, Any] = {}
    if workers:
        method = "fork" if sys.platform == "linux" else None
        ahead = {"prefetch_factor": _AHEAD, "worker_init_fn": _begin, "multiprocessing_context": method}
    return StepLoader(batches, numbers, last, collate_fn=collator.loaded, pin_memory=pin, num_workers=workers, **ahead)


def loader_workers(device: torch.device, world: World, most: int = 1) -> int:
    """How many workers a process of training has beside a GPU, where cores and shared memory are left for them.

    A processor that computes has nothing to gain from them.

    Args:
        device: what computes.
        world: the processes of the run.
        most: as many as are of use.
    """
    if device.type != "cuda" or sys.platform != "linux":
        return 0
    roomy = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM
    left = max(0, len(os.sched_getaffinity(0)) - world.local_size)
    return min(most, math.ceil(left / world.local_size)) if roomy else 0


def _begin(_: int) -> None:
    # A signal to stop is for the process that trains, which needs its batches still; where that is killed, so is this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _end_with_parent() -> None:
    """End this process when its parent says so; others say so to the parent."""
    while signal.sigwaitinfo({signal.SIGINT, signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
