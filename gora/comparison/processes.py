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

from gora.runs.folder import RunFolder
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


def run_commands(what: str, commands: Sequence[Command], at_once: int) -> dict[Path, str]:
    """Run commands side by side; a signal is handed on to those that run.

    Args:
        what: a word for all of them, which progress begins with.
        commands: what to run, in this order.
        at_once: commands at a time on each device.

    Returns:
        Why those that failed did, by folder.

    Raises:
        StopSignal: a signal came; those that were running have ended.
    """
    from torch.cuda import device_count

    if not commands:
        return {}
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
                failures[command.folder.path] = _reason(command, code)
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
    command.folder.path.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "gora", *command.arguments]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places)), **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
    with open(command.folder.path / "output.txt", "w", encoding="utf-8") as stream:
        return subprocess.Popen(line, env=environment, stdout=stream, stderr=stream, text=True)


def _reason(command: Command, code: int) -> str:
    lines = (command.folder.path / "output.txt").read_text(encoding="utf-8").strip().splitlines()
    said = [line.removeprefix("gora: ") for line in lines if line.startswith("gora: ")]
    return (said or lines or [f"exit code {code}"])[-1]
