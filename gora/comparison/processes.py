"""Commands of gora in processes of their own, so many at a time on each device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gora.files import delete
from gora.runs.failure import RECORD, Failure, read_failure
from gora.runs.folder import RunFolder
from gora.runs.owner import mark
from gora.runtime.console import output
from gora.runtime.interrupt import StopSignal
from gora.runtime.progress import Meter


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command in a process of its own.

    Attributes:
        label: what progress calls it.
        folder: its run folder, which also gets what it prints.
        arguments: of the command `gora`.
    """

    label: str
    folder: RunFolder
    arguments: tuple[str, ...]


def run_commands(what: str, commands: Sequence[Command], at_once: int) -> dict[Path, Failure]:
    """Run commands side by side; a signal is handed on to those that run.

    Args:
        what: a word for all of them, which progress begins with.
        commands: what to run, in this order.
        at_once: commands at a time on each device.

    Returns:
        Why those that failed did, by folder.

    Raises:
        InputError: a folder is not gora's.
        StopSignal: a signal came; those that were running have ended.
    """
    from torch.cuda import device_count

    if not commands:
        return {}
    for command in commands:
        mark(command.folder.path)
    places = list(range(device_count() or 1)) * at_once
    free, failures, running = list(places), {}, []
    lock, stopping = threading.Lock(), threading.Event()

    def run(command: Command) -> None:
        with lock:
            place = free.pop(0)
        try:
            process = _start(command, place, len(places))
            running.append(process)
            code = process.wait()
            if code:
                failures[command.folder.path] = _failure(command, code)
        finally:
            with lock:
                free.append(place)
                if not stopping.is_set():
                    meter.advance(facts=command.label)

    with Meter(output, what, len(commands)) as meter, ThreadPoolExecutor(len(places)) as pool:
        waiting = [pool.submit(run, command) for command in commands]
        try:
            for each in waiting:
                each.result()
        except StopSignal:
            stopping.set()
            for each in waiting:
                each.cancel()
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            raise
    return failures


def _start(command: Command, place: int, places: int) -> subprocess.Popen[str]:
    delete(command.folder.failure)
    line = [sys.executable, "-m", "gora", *command.arguments]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places)), **os.environ, RECORD: "1"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
    with open(command.folder.path / "output.txt", "w", encoding="utf-8") as stream:
        return subprocess.Popen(line, env=environment, stdout=stream, stderr=stream, text=True)


def _failure(command: Command, code: int) -> Failure:
    if (told := read_failure(command.folder)) is not None:
        return told
    printed = command.folder.path / "output.txt"
    if code < 0:
        return Failure(code="killed", message=f"ended by {signal.Signals(-code).name}; see {printed}", exit_code=1)
    return Failure(code="unknown", message=f"exit code {code}; see {printed}", exit_code=code)
