"""Room on disk: asked for before anything is written, and named when it runs out all the same."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gora.errors import GoraError

FULL = "disk-full"
"""Code of the errors that say that a disk is full."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries raise errors of their own: safetensors puts the system's number into its text, and so does datasets; torch
# only says that its archive is shorter than it should be.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_TORCH = ("inline_container.cc", "PytorchStreamWriter")
_ADVICE = "Make room, or give a folder on another disk. What was there before is untouched."


def free_bytes(path: Path | str) -> int:
    """Bytes that this user may still write on the disk of a path, which need not exist yet."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_room(path: Path | str, needed: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        path: what is about to be written.
        needed: bytes, at least.

    Raises:
        GoraError: fewer are free there.
    """
    if (free := free_bytes(path)) < needed:
        raise GoraError(f"There is no room for {path}. {_sizes(needed, free)} {_ADVICE}", code=FULL)


@contextmanager
def writing(path: Path | str, needed: int | None = None, aside: Path | None = None) -> Iterator[None]:
    """Tell of a disk that did not take what the block writes, whichever library has noticed it, in one line.

    Args:
        path: what is being written, as the user knows it.
        needed: bytes, at least; None is not known.
        aside: the file or folder that is written for the time being, and deleted after an error.

    Raises:
        GoraError: with the path, what it needs and what is free.
    """
    try:
        yield
    except Exception as error:
        # Of a file inside a folder that lies aside, the user knows the folder.
        told = isinstance(error, GoraError) and not (aside and error.code == FULL)
        if told or (reason := refusal_of(error)) is None:
            raise
        held = size_of(aside) if aside else 0
        # What lies aside is about to be deleted: it was free when the writing began.
        sizes = _sizes(max(needed or 0, held), free_bytes(path) + held, "at least ")
        raise GoraError(
            f"{path} cannot be written: {reason}.{_limit()} {sizes} {_ADVICE}", code=FULL if is_full(error) else "os"
        ) from error


def refusal_of(error: BaseException) -> str | None:
    """Why the system did not take what was written, in its words; None for an error of another kind."""
    number = _number_of(error)
    if number is None:
        return None
    return os.strerror(number) if number else "it broke off"


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or the limit on the size of a file is what stopped the writing."""
    return _number_of(error) in (*_NO_ROOM, 0)


def advice_for(error: BaseException) -> str | None:
    """One line for an error that nobody has told of yet; None where no disk is to blame."""
    if (reason := refusal_of(error)) is None:
        return None
    files = [each.filename for each in _chain(error) if isinstance(each, OSError) and each.filename]
    if not files:
        return f"A file cannot be written: {reason}.{_limit()} Make room."
    return f"{files[-1]} cannot be written: {reason}.{_limit()} {size_text(free_bytes(files[-1]))} are free. Make room."


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def size_text(size: float) -> str:
    """Bytes in words: `5.37 GB`, `2.8 MB`, `41 kB`."""
    for unit, name, digits in ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 0)):
        if size >= unit:
            return f"{size / unit:.{digits}f} {name}"
    return f"{size:.0f} bytes"


def _number_of(error: BaseException) -> int | None:
    """The system's number of the error at the bottom, 0 where a library keeps it to itself.

    Other errors of the system than a full disk are told as they are, apart from those in the words of safetensors.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _NO_ROOM:
            return each.errno
        told = _NUMBER.search(str(each))
        if told and (type(each).__name__ == "SafetensorError" or int(told[1] or told[2]) in _NO_ROOM):
            return int(told[1] or told[2])
        if known := next((number for number in _NO_ROOM if os.strerror(number) in str(each)), None):
            return known
    torn = (any(sign in str(each) for sign in _TORCH) for each in _chain(error) if isinstance(each, RuntimeError))
    return 0 if any(torn) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _limit() -> str:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "" if limit == resource.RLIM_INFINITY else f" A file may have {size_text(limit)} here (ulimit -f)."


def _sizes(needed: int, free: int, more: str = "") -> str:
    return f"It needs {more}{size_text(needed)}, and {size_text(free)} are free."
