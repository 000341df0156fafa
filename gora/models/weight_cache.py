"""A cache of the digests of weight files, so that many gigabytes are read once and not by every command.

There is one small JSON file per weight file, in `gora/weights` of the user's cache folder. Nothing depends on it: an
entry that is missing, damaged or out of date is computed again, and one that cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gora.errors import GoraError
from gora.files import write_json

Digests = dict[str, str]
# A file that is written twice within a tick of its file system's clock may have the same times both times.
_TICK_NS = 2_000_000_000


def cached(path: Path, compute: Callable[[Path], Digests]) -> Digests:
    """The digests of a file's tensors: those kept for a file of this path, size and times, else computed and kept."""
    path = path.resolve()
    entry, before = _entry(path), _state(path)
    if entry and (digests := _read(entry, path, before)) is not None:
        return digests
    digests = compute(path)
    if entry and _state(path) == before and _is_settled(path):
        # A full disk or a folder that is read-only costs time at the next command, and nothing else.
        with suppress(OSError, GoraError):
            write_json(entry, {**_key(path, before), "digests": digests, "checksum": _checksum(digests)})
            _prune(entry.parent)
    return digests


def _entry(path: Path) -> Path | None:
    """Where the digests of a file are kept; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "gora" / "weights" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _state(path: Path) -> list[int]:
    """Size, and the times at which content and anything else changed.

    The second time changes too when the first is set back, as by tools that copy it or that give all files the same.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(path: Path) -> bool:
    return max(_state(path)[1:]) + _TICK_NS < time.time_ns()


def _key(path: Path, state: list[int]) -> dict[str, object]:
    return {"path": str(path), "size": state[0], "mtime_ns": state[1], "ctime_ns": state[2]}


def _read(entry: Path, path: Path, state: list[int]) -> Digests | None:
    try:
        kept = json.loads(entry.read_text(encoding="utf-8"))
        same = {name: kept[name] for name in _key(path, state)} == _key(path, state)
        digests: Digests = kept["digests"]
        return digests if same and kept["checksum"] == _checksum(digests) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _checksum(digests: Digests) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _prune(folder: Path) -> None:
    """Delete entries of weight files that are gone, and what is not an entry."""
    for entry in folder.glob("*.json"):
        try:
            gone = not Path(json.loads(entry.read_text(encoding="utf-8"))["path"]).exists()
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError):
            gone = True
        if gone:
            entry.unlink(missing_ok=True)
