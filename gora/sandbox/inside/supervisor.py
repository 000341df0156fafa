"""The process beside a program: it holds the clock, and ends whatever is left when the time has come.

`python -I -c` runs `main`. It reads a request (JSON) from standard input and writes the verdict (JSON) to standard
output. When the pipe `lifeline` closes, because the process at its other end let go of it or was killed, it clears up
and leaves.
"""

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from gora.runtime.scratch import make_locked, remove
from gora.sandbox.inside import kernel
from gora.sandbox.inside.processes import descendants, end_all
from gora.sandbox.inside.program import READY, become

_LOOK_EVERY = 0.05
_CHUNK = 65536
_FAILURES = ("failed", "exited", "out of memory")


def main() -> None:
    """Run the program of one request, say how it went, and leave nothing behind."""
    request = json.load(sys.stdin)
    if kernel.LINUX:
        kernel.adopt_orphans()
        kernel.set_readable(False)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever ends this process means what it watches: `lifeline` does
    try:
        # Made here, so that there is none if whoever asks is killed before somebody knows of it.
        lock = make_locked(request["folder"])
        os.chdir(request["folder"])
    except OSError as error:
        verdict = {"outcome": "broken", "detail": f"there is no folder for it: {error}", "seconds": 0.0, "output": ""}
    else:
        try:
            verdict = _Watch(request, lock).verdict()
        finally:
            remove(request["folder"])
    sys.stdout.write(json.dumps(verdict))


class _Watch:
    """A program in a child process, watched until it ends or has to."""

    def __init__(self, request: dict[str, Any], lock: int) -> None:
        self._limits = request["limits"]
        self._lifeline, self._folder = request["lifeline"], request["folder"]
        self._secret = os.urandom(16).hex().encode()
        self._output, self._answer = b"", b""
        self._status: int | None = None
        self._computed = 0.0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._start = self._looked = time.monotonic()
        self._pause = _LOOK_EVERY
        self._child = self._fork(request, lock)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def verdict(self) -> dict[str, Any]:
        """Wait for the end, see to it that all is over, and judge."""
        try:
            reason = self._wait()
        finally:
            seconds = time.monotonic() - self._start
            all_ended = end_all(self._child)
        self._drain()
        outcome, detail = reason or self._judged()
        if not all_ended:
            outcome, detail = "broken", f"processes of it are left that cannot be ended: {descendants(os.getpid())}"
        output = self._output.decode(errors="replace")
        return {"outcome": outcome, "detail": detail, "seconds": seconds, "output": output}

    def _fork(self, request: dict[str, Any], lock: int) -> int:
        (self._prints, output), (self._answers, answers), (asks, secret) = os.pipe(), os.pipe(), os.pipe()
        os.write(secret, self._secret)
        os.close(secret)
        child = os.fork()
        if child == 0:
            for mine in (self._prints, self._answers, self._woken, self._wake, self._lifeline, lock):
                os.close(mine)
            become(request, output, asks, answers)
        for its in (output, answers, asks):
            os.close(its)
        self._open = [self._prints, self._answers, self._woken]
        for mine in self._open:
            os.set_blocking(mine, False)
        return child

    def _wait(self) -> tuple[str, str] | None:
        """Return when the child has ended, or with the reason why it has to."""
        end = self._start + self._limits["seconds"]
        while not self._has_ended():
            left = end - time.monotonic()
            if left <= 0:
                return "timed out", f"no end after {self._limits['seconds']:g} s"
            ready, _, _ = select.select([*self._open, self._lifeline], [], [], min(left, self._pause))
            if self._lifeline in ready:
                return "stopped", "nobody waits for it any more"
            self._drain()
            reason = self._too_many_files()
            if reason is not None:
                return reason
        return None

    def _has_ended(self) -> bool:
        with suppress(ChildProcessError):
            while self._status is None:
                process, status, used = os.wait4(-1, os.WNOHANG)
                if process == 0:
                    return False
                if process == self._child:
                    self._status = os.waitstatus_to_exitcode(status)
                    self._computed = used.ru_utime + used.ru_stime
        return True

    def _too_many_files(self) -> tuple[str, str] | None:
        """Limits of the kernel are for each file, this one is for all of them."""
        now = time.monotonic()
        if now - self._looked < self._pause:
            return None
        size = _size_of(self._folder)
        self._looked = time.monotonic()
        self._pause = max(_LOOK_EVERY, 10 * (self._looked - now))  # no more than a tenth of the time
        if size > self._limits["disk"]:
            return "failed", f"more than {self._limits['disk'] / 2**20:g} MiB in files"
        return None

    def _drain(self) -> None:
        """Take what the pipes hold, so that nobody waits at a full one; what is over the limit is forgotten."""
        self._output = (self._output + self._taken(self._prints))[: self._limits["output"]]
        self._answer = (self._answer + self._taken(self._answers))[:_CHUNK]
        self._taken(self._woken)

    def _taken(self, stream: int) -> bytes:
        try:
            taken = os.read(stream, _CHUNK)
        except BlockingIOError:
            return b""
        if not taken and stream in self._open:
            self._open.remove(stream)  # closed at the other end, and from now on always ready
        return taken

    def _judged(self) -> tuple[str, str]:
        status = self._status or 0
        ready, mark, answer = self._answer.partition(READY)
        if ready or not mark:
            return "broken", _said(self._answer).get("detail", f"exit code {status}")
        if answer == self._secret and status == 0:
            return "passed", ""
        said = _said(answer)
        # The program itself may have written this, but not so that it helps it.
        if said.get("outcome") in _FAILURES:
            return said["outcome"], said.get("detail", "")
        if self._computed >= self._limits["cpu_seconds"] or -status == signal.SIGXCPU:
            return "timed out", f"more than {self._limits['cpu_seconds']:g} s of computing"
        with suppress(ValueError):
            return "crashed", signal.Signals(-status if status < 0 else status - 128).name
        return "exited", f"exit code {status} before the tests were done"


def _said(answer: bytes) -> dict[str, str]:
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}


def _size_of(folder: str) -> int:
    """Bytes on disk of all that is in a folder, as far as it can be seen."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += 512 * os.lstat(os.path.join(path, name)).st_blocks
    return size
