"""Temporary folders; what a killed process leaves is deleted by the next one that makes a folder.

The process that uses a folder holds a lock on it, which the kernel takes from it however it ends: unlike a process id,
a lock is never somebody else's a day later, nor another container's.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Literal

Kind = Literal["launch", "program", "adapter"]
_NEW = ".new"


class Scratch:
    """A temporary folder of this process, deleted at the end of a `with` block, or with the object.

    Attributes:
        path: the folder.
    """

    def __init__(self, kind: Kind) -> None:
        sweep()
        self.path = new_path(kind)
        lock = make_locked(self.path)
        self._delete = weakref.finalize(self, _give_up, self.path, lock)

    def __enter__(self) -> str:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delete()


def new_path(kind: Kind) -> str:
    """A path in the system's temporary folder at which nothing is."""
    name = f"gora-{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    return os.path.join(tempfile.gettempdir(), name)


def make_locked(path: str) -> int:
    """Make a folder for this user alone, and lock it.

    Returns:
        The file descriptor that holds the lock until it is closed, or until the process ends.

    Raises:
        OSError: it cannot be made; nothing is left of it.
    """
    # A sweep does not know the first name, and finds the second one locked.
    os.mkdir(path + _NEW, 0o700)
    lock = os.open(path + _NEW, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # a file system without locks: no sweep will get one either, and the folder stays
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        os.rename(path + _NEW, path)
    except OSError:
        os.rmdir(path + _NEW)
        os.close(lock)
        raise
    return lock


def sweep() -> None:
    """Delete this user's folders whose processes have ended; only those of this host, whose locks are seen here."""
    mine = re.compile(rf"gora-(launch|program|adapter)-{re.escape(socket.gethostname())}-\d+-[0-9a-f]+")
    with suppress(OSError):
        for name in os.listdir(tempfile.gettempdir()):
            if mine.fullmatch(name):
                _sweep_one(os.path.join(tempfile.gettempdir(), name))


def _sweep_one(path: str) -> None:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
    except OSError:  # in use
        pass
    finally:
        os.close(lock)


def remove(folder: str) -> None:
    """Delete a folder with all that a program has left in it, also what it has forbidden to touch."""
    for path, inner, _ in os.walk(folder):
        for below in (os.path.join(path, name) for name in inner):
            with suppress(OSError):
                if not os.path.islink(below):  # what a link leads to is not ours
                    os.chmod(below, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _give_up(path: str, lock: int) -> None:
    remove(path)
    os.close(lock)
