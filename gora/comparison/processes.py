"""Commands of gora in processes of their own, so many at a time on each device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gora.files import delete
from gora.runs.failure import RECORD, Failure, read_failure
from gora.runs.folder import RunFolder
from gora.runs.owner import mark
from gora.runtime.console import output
from gora.runtime.interrupt import StopSignal
from gora.runtime.progress import Meter
from gora.runtime.starter import bound_to_this_process

_LOOK_EVERY = 0.1


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


@dataclass(frozen=True)
class _Running:
    command: Command
    place: int
    process: subprocess.Popen[str]


def run_commands(what: str, commands: Sequence[Command], at_once: int) -> dict[Path, Failure]:
    """Run commands side by side; a signal is handed on to those that run. Call it from the main thread.

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
    free = list(range(device_count() or 1)) * at_once
    places, waiting = len(free), list(commands)
    running: list[_Running] = []
    failures: dict[Path, Failure] = {}
    with Meter(output, what, len(commands)) as meter:
        try:
            while waiting or running:
                while waiting and free:
                    command, place = waiting.pop(0), free.pop(0)
                    running.append(_Running(command, place, _start(command, place, places)))
                time.sleep(_LOOK_EVERY)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    free.append(each.place)
                    if each.process.returncode:
                        failures[each.command.folder.path] = _failure(each.command, each.process.returncode)
                    meter.advance(facts=each.command.label)
        except BaseException:
            try:
                _stop(running)
            except StopSignal:
                # Asked a second time, they stop in the middle of their step.
                _stop(running)
            raise
    return failures


def _stop(running: Sequence[_Running]) -> None:
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGINT)
    for each in running:
        each.process.wait()


def _start(command: Command, place: int, places: int) -> subprocess.Popen[str]:
    delete(command.folder.failure)
    line = [sys.executable, "-m", "gora", *command.arguments]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places))}
    environment = {**threads, **os.environ, **bound_to_this_process(), RECORD: "1"}
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
