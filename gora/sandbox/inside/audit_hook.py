"""A guard inside the interpreter, for systems that allow no namespaces: Python asks it before it touches the world.

It stops programs that do harm without meaning to. One that means to can get past it, unlike past the kernel's walls.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

_REFUSED = (
    "socket.bind",
    "socket.connect",
    "socket.get",
    "socket.send",
    "subprocess.",
    "os.fork",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.killpg",
    "pty.",
    "ctypes.dlopen",
    "ctypes.dlsym",
    "ctypes.call_function",
    "ftplib.",
    "http.client.",
    "urllib.",
    "smtplib.",
    "syslog.",
)
_PATHS_OF = {
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.removexattr": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.rmtree": 1,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(folder: str) -> None:
    """Refuse the network, other programs, signals to others and writing outside a folder, with PermissionError."""
    sys.addaudithook(_guard_of(os.path.realpath(folder)))


def _guard_of(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    # Bound here: a program may replace what it finds in modules.
    real_path, own_id, decode = os.path.realpath, os.getpid, os.fsdecode

    def outside(path: Any) -> bool:
        if path is None or isinstance(path, int):
            return False  # an open file, which was asked about when it was opened
        real = real_path(decode(path))
        return not (real == folder or real.startswith(folder + os.sep) or real == os.devnull)

    def of_another_process(path: Any) -> bool:
        if path is None or isinstance(path, int):
            return False
        real = real_path(decode(path))
        return real.startswith("/proc/") and not real.startswith(f"/proc/{own_id()}/")

    def ask(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and outside(path):
                raise PermissionError(f"programs under test may not write {path!r}")
            if of_another_process(path):
                raise PermissionError(f"programs under test may not read {path!r}")
        elif event in _PATHS_OF:
            if any(outside(path) for path in arguments[: _PATHS_OF[event]]):
                raise PermissionError(f"programs under test may not change {arguments[0]!r}")
        elif event == "os.kill":
            if arguments[0] != own_id():
                raise PermissionError("programs under test may not send signals")
        elif event.startswith(_REFUSED):
            raise PermissionError(f"programs under test may not use {event}")

    return ask
