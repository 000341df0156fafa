"""The folder in which tokenised rows are kept: what is there, who writes, what is deleted.

Each entry is a folder that appears whole or not at all, named by a digest of all that its rows are made of. Nothing
depends on an entry: one that is missing or damaged is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.errors import GoraError, InputError
from gora.files import delete, sweep
from gora.runtime.waiting import Wait

ABOUT = "about.json"
_LOCK = ".lock"
_PATIENCE = 2 * 3600.0
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Rows that are kept.

    Attributes:
        path: the folder.
        size: bytes on the disk.
        rows: how many examples it holds.
        source: what they were read from.
        used: when a command last used them, seconds since 1970.
    """

    path: Path
    size: int
    rows: int
    source: str
    used: float


def row_folder(setting: str | None = None) -> Path:
    """Where rows are kept: the folder of the recipe (`data.cache`), else `gora/rows` in the hub's cache folder."""
    if setting is not None:
        return Path(setting).expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "gora" / "rows"


def entries(folder: Path) -> list[Entry]:
    """What is kept, the latest used first."""
    found = []
    for about in folder.glob(f"*/{ABOUT}"):
        # Another command may be deleting it; what is not an entry is left alone.
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(about.read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            rows, source, used = int(note["examples"]), str(note["facts"]["name"]), about.stat().st_mtime
            found.append(Entry(path=about.parent, size=size, rows=rows, source=source, used=used))
    return sorted(found, key=lambda entry: -entry.used)


def prune(folder: Path, older_than: float = 0.0) -> list[Entry]:
    """Delete entries, and what killed processes of this host left beside them. Commands that use one keep its rows.

    Args:
        folder: where rows are kept.
        older_than: only those that no command has used for so many days.

    Returns:
        What was deleted.
    """
    if not folder.is_dir():
        return []
    sweep(folder)
    old = [entry for entry in entries(folder) if entry.used <= time.time() - older_than * _DAY]
    for entry in old:
        delete(entry.path)
    return old


def mark_used(entry: Path) -> None:
    """Note that a command uses an entry now."""
    with suppress(OSError):  # somebody else's
        os.utime(entry / ABOUT)


@contextmanager
def writing(entry: Path) -> Iterator[None]:
    """Keep every other process of this host from making the same entry inside the block.

    Raises:
        InputError: the folder cannot be made or written.
        GoraError: another process has been at it for hours.
    """
    lock = entry.with_name(entry.name + _LOCK)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"Tokenised rows cannot be kept in {entry.parent}: {error.strerror or error}. Name another folder with "
            "data.cache."
        ) from error
    try:
        with Wait(lambda: "waiting for another command that tokenizes the same rows", _PATIENCE) as wait:
            while not _locked(descriptor):
                if wait.left < 0:
                    raise GoraError(f"Another process has held {lock} for two hours.")
                wait.pause()
        yield
    finally:
        # Whoever waits for it, or makes another one, looks first whether the entry is there.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: whoever is done last writes the same
        return True
    return True


def read_note(entry: Path) -> dict[str, Any] | None:
    """What an entry says of itself; None where it cannot be read."""
    try:
        note = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None
