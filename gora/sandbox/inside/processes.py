"""Processes as `/proc` shows them. Where there is no `/proc`, there are none to see."""

import os
import signal
import time
from contextlib import suppress

_PATIENCE = 30.0


def descendants(of: int) -> list[int]:
    """Process ids of all that come from a process, the dead that nobody asked after included, itself not."""
    children: dict[int, list[int]] = {}
    for process in _ids():
        # `pid (any name) state parent ...`
        with suppress(OSError, ValueError, IndexError):
            children.setdefault(int(_read(process, "stat").rpartition(b")")[2].split()[1]), []).append(process)
    found, ahead = [], list(children.get(of, []))
    while ahead:
        process = ahead.pop()
        found.append(process)
        ahead += children.get(process, [])
    return found


def tasks_of_user(user: int) -> int:
    """How many threads a user's processes have, as the limit on processes counts them."""
    tasks = 0
    for process in _ids():
        with suppress(OSError):
            if os.stat(f"/proc/{process}").st_uid == user:
                tasks += len(os.listdir(f"/proc/{process}/task"))
    return tasks


def end_all(session: int) -> bool:
    """Kill a process group and every descendant of this process, and wait until none is left.

    Orphans must come to this process (`kernel.adopt_orphans`), or they are missed.

    Returns:
        Whether all have ended; False after half a minute of trying.
    """
    end = time.monotonic() + _PATIENCE
    while _children_left():
        if time.monotonic() > end:
            return False
        # A group is killed in one step, which a program that forks without end cannot outrun.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)
        for process in descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)
    return True


def _children_left() -> bool:
    """Whether children are left once the dead ones are buried."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _read(process: int, name: str) -> bytes:
    with open(f"/proc/{process}/{name}", "rb") as stream:
        return stream.read()
