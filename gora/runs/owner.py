"""Who may write into a folder: only gora, only into folders of its own, and only one command at a time.

A folder of gora's carries a marker. A command that writes into it holds a lock (flock) on a file inside, which the
system releases when the last process that holds it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gora.disk import is_full
from gora.errors import InputError
from gora.files import delete, sweep, write_json
from gora.runs.failure import record_failure
from gora.runtime.interrupt import StopSignal

if TYPE_CHECKING:
    from gora.runtime.world import World

MARKER = ".gora"
LOCK = ".gora-lock"
HELD = "GORA_HELD_FOLDER"
"""Names, in the environment of processes that gora's launcher starts, the folder whose lock the launcher holds."""


@dataclass
class _Holding:
    descriptor: int
    commands: int = 1


_holdings: dict[Path, _Holding] = {}


def _let_go() -> None:
    """A forked worker has the locks of this process too, and would hold them on after it."""
    for holding in _holdings.values():
        os.close(holding.descriptor)
    _holdings.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def owning(folder: Path, *, command: str, option: str = "--set output=FOLDER") -> Iterator[None]:
    """Make the folder gora's, if it is new or empty, and keep every other command out of it inside the block.

    A process that already holds the folder, such as `gora run` when its closing tasks write there, holds it on.

    Args:
        folder: a run folder, the folder of a comparison, or one for results.
        command: told to whoever finds the folder in use.
        option: how the user gives another folder.

    Raises:
        InputError: the folder holds files and no marker, is a link to nothing, or is in use.
    """
    place = folder.resolve()
    if (known := _holdings.get(place)) is not None:
        known.commands += 1
        try:
            yield
        finally:
            known.commands -= 1
        return
    _refuse_links(folder)
    is_new = not folder.exists()
    _make(folder, option)
    _refuse_foreign(folder, option)
    shared = os.environ.get(HELD) == str(place)
    _holdings[place] = _Holding(_lock(folder, command, option, shared=shared))
    try:
        if not (folder / MARKER).exists():
            write_json(folder / MARKER, {"folder": "of gora", "made": _now()})
        if not shared:
            sweep(folder)
        yield
    except (Exception, StopSignal) as error:
        record_failure(folder, error)
        raise
    finally:
        _release(folder, _holdings.pop(place), forget=is_new and not shared)


@contextmanager
def owning_together(world: World, folder: Path, *, command: str, option: str = "--set output=FOLDER") -> Iterator[None]:
    """As `owning`, for all processes of a run: process 0 holds the folder, and what it refuses all of them refuse."""
    if not world.main:
        world.refuse_together(None)
        try:
            yield
        except (Exception, StopSignal) as error:
            record_failure(folder, error)
            raise
        return
    with ExitStack() as held:
        world.refuse_together(lambda: held.enter_context(owning(folder, command=command, option=option)))
        yield


@contextmanager
def holding_for_workers(folder: Path, *, command: str) -> Iterator[None]:
    """As `owning`; processes that are started inside the block hold the lock as well, so that it outlives this one."""
    with owning(folder, command=command):
        _share(folder)
        os.environ[HELD] = str(folder.resolve())
        try:
            yield
        finally:
            os.environ.pop(HELD, None)


def _share(folder: Path) -> None:
    place = folder.resolve()
    # Shared instead of exclusive: workers can then take it too; another command wants it alone and still cannot.
    try:
        fcntl.flock(_holdings[place].descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The system may let go of one lock before it takes the other, and another command was there in between.
        raise InputError(f"{folder} is in use by another command. Wait until it has ended.") from None


def refuse_what_cannot_be_taken(folder: Path, option: str = "--set output=FOLDER") -> None:
    """As `owning` would refuse a folder, without taking it or making it.

    Raises:
        InputError: it is not gora's, a link to nowhere, or lies where nothing can be written.
    """
    _refuse_links(folder)
    _refuse_unwritable(folder, option)
    if folder.exists():
        _refuse_foreign(folder, option)


def is_owned(folder: Path) -> bool:
    """Whether the folder carries gora's marker."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Make a new folder gora's before a command of its own opens it."""
    _make(folder, "--output")
    _refuse_foreign(folder, "--output")
    if not is_owned(folder):
        write_json(folder / MARKER, {"folder": "of gora", "made": _now()})


def _refuse_links(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder} is a link to {os.readlink(folder)}, which does not exist.")


def _make(folder: Path, option: str) -> None:
    _refuse_unwritable(folder, option)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        # Some file systems, such as /proc, refuse what their permissions allow.
        raise InputError(f"{folder} cannot be made ({error.strerror}). Give another folder with {option}.") from None


def _refuse_unwritable(folder: Path, option: str) -> None:
    """Refuse a folder that lies below a file, or where this user may not write."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InputError(f"{folder} cannot be a folder: {place} is a file. Give another folder with {option}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{place} may not be written to. Give another folder with {option}, or change its permissions."
        )


def _refuse_foreign(folder: Path, option: str) -> None:
    if is_owned(folder):
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            f"{folder} is not empty ({some}) and not a folder of gora's (it has no {MARKER}): nothing is written or "
            f"deleted there, also not with --overwrite. Give a new or empty folder with {option}."
        )


def _lock(folder: Path, command: str, option: str, *, shared: bool) -> int:
    """Take the lock; returns the descriptor that holds it."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{folder} is in use by {holder}. Wait until it has ended, stop it, or give another folder with "
                f"{option}."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(f"{path} cannot be locked ({error.strerror}). Give a folder on another disk.") from None
        # Whoever held it last may have deleted the file between the two calls; its lock would keep nobody out.
        if _is_file(descriptor, path):
            break
        os.close(descriptor)
    if not shared:
        content = {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "since": _now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
    return descriptor


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"`{holder['command']}` (host {holder['host']}, process {holder['pid']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another command"


def _release(folder: Path, holding: _Holding, *, forget: bool) -> None:
    if forget and not any(path.name not in (MARKER, LOCK) for path in folder.iterdir()):
        # The command was refused before it had made anything: the folder goes as it came.
        delete(folder / MARKER)
        (folder / LOCK).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError as error:
            print(f"gora: {folder} cannot be removed: {error.strerror}", file=sys.stderr)
    os.close(holding.descriptor)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
