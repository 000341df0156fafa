"""Programs that a model wrote, each run in a process of its own, behind what walls this system allows."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gora
from gora.errors import GoraError
from gora.runtime.scratch import new_path, remove, sweep
from gora.sandbox.inside.walls import SYSTEM, python

Outcome = Literal["passed", "failed", "timed out", "out of memory", "crashed", "exited", "stopped", "broken"]
Walls = frozenset[Literal["bwrap", "namespaces", "landlock", "seccomp", "guard"]]

# Each has what keeps a program from starting processes: one that forks without end is ended too late.
_STRONGEST_FIRST: tuple[Walls, ...] = (
    frozenset({"bwrap", "landlock", "seccomp"}),
    frozenset({"bwrap", "seccomp"}),
    frozenset({"namespaces", "landlock", "seccomp"}),
    frozenset({"namespaces", "seccomp"}),
    frozenset({"namespaces", "landlock", "guard"}),
    frozenset({"namespaces", "guard"}),
    frozenset({"landlock", "seccomp", "guard"}),
    frozenset({"seccomp", "guard"}),
    frozenset({"landlock", "guard"}),
    frozenset({"guard"}),
)
_ATTEMPTS = 3
_INSIDE = "/run/gora"
_PARTS = ("gora/__init__.py", "gora/runtime/__init__.py", "gora/runtime/scratch.py", "gora/sandbox")
"""What the watching process imports of this package: nothing else of it is seen in a sandbox of Bubblewrap."""
_START = """
import sys
sys.path.insert(0, {root!r})
from gora.sandbox.inside.supervisor import main
del sys.path[0]
main()
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: time until it is ended.
        cpu_seconds: time of computing.
        memory: bytes of address space.
        file_size: bytes of a file.
        disk: bytes of all its files.
        threads: at a time; root is held back by `memory` alone.
        output: bytes of its output that are kept; the rest is read and forgotten.
    """

    seconds: float = 15.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    file_size: int = 16 << 20
    disk: int = 64 << 20
    threads: int = 32
    output: int = 4096


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a program ended.

    Attributes:
        outcome: `passed` when it came to its end; `exited` when it left before.
        detail: the last line of its error, or what else there is to say; empty when it passed.
        seconds: how long it ran.
        output: the beginning of what it printed.
    """

    outcome: Outcome
    detail: str
    seconds: float
    output: str

    @property
    def passed(self) -> bool:
        """Whether it came to its end."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and this system.

    Attributes:
        walls: which walls the system allows.
        as_root: whether programs remain root, whom file permissions do not hold back.
    """

    walls: Walls
    as_root: bool = False

    @property
    def complete(self) -> bool:
        """Whether the kernel keeps programs from the network, other processes, writing files and reading the user's."""
        return not self.missing()

    def words(self) -> list[str]:
        """What is in force, one sentence each, and then what is missing."""
        sentences = ["Each program runs in a process of its own, with limits on time, memory and files."]
        if "bwrap" in self.walls:
            sentences.append("Bubblewrap: no network, no other processes, and no files but Python's and the system's.")
        if "namespaces" in self.walls:
            sentences.append("Namespaces: no network, no other processes, and no file system to write to but its own.")
        if "landlock" in self.walls:
            sentences.append("Landlock: no files to read but Python's and the system's, and none to write but its own.")
        if "seccomp" in self.walls:
            sentences.append("Seccomp: no sockets, no further processes, no signals to others.")
        if "guard" in self.walls:
            sentences.append("A guard in the interpreter refuses the network, processes and writing elsewhere.")
        return sentences + self.missing()

    def missing(self) -> list[str]:
        """What a complete sandbox has and this one lacks, one sentence each."""
        sentences = []
        if not self.walls & {"bwrap", "namespaces"}:
            sentences.append("This system allows no namespaces: a program that means harm may get past the guard.")
        if not self.walls & {"bwrap", "landlock"}:
            sentences.append("This system has no Landlock: a program can read what its user can read.")
        if self.as_root:
            sentences.append("Programs remain root, since no other user can read this Python: put it where all can.")
        return sentences


@functools.cache
def isolation() -> Isolation:
    """The strongest walls that this system allows, found by running a program behind them.

    Raises:
        GoraError: not even the weakest can be put up.
    """
    for walls in _STRONGEST_FIRST:
        if "bwrap" in walls and shutil.which("bwrap") is None:
            continue
        verdict = _run_alone("import math", Limits(), walls)
        if verdict.passed:
            return Isolation(walls, as_root=not _run_alone("import os\nassert os.getuid()", Limits(), walls).passed)
    raise GoraError(f"Programs cannot be run apart on this system: {verdict.outcome}: {verdict.detail}")


def run_program(source: str, limits: Limits = Limits(), walls: Walls | None = None) -> Verdict:
    """Run a Python program to its end, or end it.

    Args:
        source: its text.
        limits: what it may take.
        walls: what to put up; None is the most that this system allows.

    Raises:
        GoraError: the walls cannot be put up, and nothing was run.
    """
    with _lifeline() as (lifeline, _):
        return _run_surely(source, limits, isolation().walls if walls is None else walls, lifeline)


def run_programs(sources: Sequence[str], limits: Limits, done: Callable[[], None]) -> list[Verdict]:
    """Run programs, as many at a time as there are cores; an exception, Ctrl-C included, ends those that run.

    Args:
        sources: their texts.
        limits: what each may take.
        done: called whenever one has ended.

    Raises:
        GoraError: the walls cannot be put up.
    """
    sweep()
    walls = isolation().walls
    with ThreadPoolExecutor(_cores()) as pool, _lifeline() as (lifeline, let_go):
        futures = [pool.submit(_run_surely, source, limits, walls, lifeline) for source in sources]
        verdicts = []
        try:
            for future in futures:
                verdicts.append(future.result())
                done()
        except BaseException:
            let_go()
            pool.shutdown(cancel_futures=True)
            raise
    return verdicts


def _run_alone(source: str, limits: Limits, walls: Walls) -> Verdict:
    with _lifeline() as (lifeline, _):
        return _run(source, limits, walls, lifeline)


def _run_surely(source: str, limits: Limits, walls: Walls, lifeline: int) -> Verdict:
    # A system that is short of something for a moment must not cost the answers that were generated.
    for _ in range(_ATTEMPTS):
        verdict = _run(source, limits, walls, lifeline)
        if verdict.outcome != "broken":
            return verdict
    raise GoraError(f"A program could not be run apart from the rest of this system: {verdict.detail}")


def _run(source: str, limits: Limits, walls: Walls, lifeline: int) -> Verdict:
    folder = new_path("program")
    request = {"source": source, "limits": asdict(limits), "walls": sorted(walls), "folder": folder}
    try:
        with subprocess.Popen(
            _command(walls, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(lifeline,),
            cwd=tempfile.gettempdir(),
            env=_environment(folder),
            start_new_session=True,
        ) as supervisor:
            said, complaint = supervisor.communicate(json.dumps({**request, "lifeline": lifeline}).encode())
    finally:
        remove(folder)
    try:
        return Verdict(**json.loads(said))
    except ValueError:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {supervisor.returncode}"]
        return Verdict(
            outcome="crashed", detail=f"the process that watched it has ended: {last[0]}", seconds=0.0, output=""
        )


def _command(walls: Walls, limits: Limits) -> list[str]:
    """What starts the process that watches a program; in a sandbox of Bubblewrap, where that is wanted."""
    root = Path(gora.__file__).resolve().parent.parent
    if "bwrap" not in walls:
        return [sys.executable, "-I", "-c", _START.format(root=str(root))]
    line = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    line += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    line += ["--size", str(limits.disk), "--tmpfs", tempfile.gettempdir()]
    for path in (*SYSTEM, *python()):
        line += ["--ro-bind-try", path, path]
    for part in _PARTS:
        line += ["--ro-bind", str(root / part), f"{_INSIDE}/{part}"]
    line += ["--chdir", tempfile.gettempdir(), "--", sys.executable, "-I", "-c", _START.format(root=_INSIDE)]
    return line


def _environment(folder: str) -> dict[str, str]:
    """All that programs see of the environment; a Python that was built apart may need the path of its libraries."""
    own = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**own, **threads, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}


@contextmanager
def _lifeline() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe that tells supervisors when to stop: its end to read, and what closes the other one.

    It also closes when this process is killed.
    """
    reading, writing = os.pipe()
    ends = [writing]

    def let_go() -> None:
        while ends:
            os.close(ends.pop())

    try:
        yield reading, let_go
    finally:
        let_go()
        os.close(reading)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
