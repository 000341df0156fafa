"""The processes that make runs, several on each GPU."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from cells import Run
from making import run_one

PRELOADED = [
    "gora.stages.run",
    "gora.stages.evaluate",
    "gora.methods",
    "gora.training.loop",
    "peft",
    "transformers.models.llama",
]
"""What a run imports; no GPU is begun with."""


def start(device: str, muted: bool) -> None:
    """Give a worker its GPU, before it knows of any."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = "1"
    if muted:
        from gora.runtime.console import output

        output.mute()


def context_of_workers() -> BaseContext:
    """Starts processes that share what one of them has imported, which takes each of many a minute otherwise."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else asking for a GPU would keep forked processes from it
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as pool:
        return multiprocessing.get_context("spawn") if pool.submit(cannot_fork).result() else context


def cannot_fork() -> bool:
    """Whether a GPU was begun with before this process was forked."""
    import torch

    return bool(torch.cuda._is_in_bad_fork())


def devices_of(told: str) -> list[str]:
    """The numbers of GPUs that are given, or are in a file by now."""
    path = Path(told)
    text = path.read_text() if told and path.is_file() else told
    return text.replace("\n", ",").strip(",").split(",")


class Worker:
    """A process that makes one run after the other.

    Args:
        device: the number of its GPU, or nothing.
        muted: whether it prints nothing of its runs.
        context: starts processes.
    """

    def __init__(self, device: str, muted: bool, context: BaseContext) -> None:
        self._device, self._muted, self._context = device, muted, context
        self.begin()

    def begin(self) -> None:
        """A new process, in the place of one that has come to harm."""
        self.pool = ProcessPoolExecutor(1, self._context, initializer=start, initargs=(self._device, self._muted))

    def submit(self, recipe: dict[str, Any], folder: str, base_too: bool) -> Future[Run]:
        """See `run_one`."""
        return self.pool.submit(run_one, recipe, folder, base_too)
