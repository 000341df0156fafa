"""Which of several processes failed first: only that one tells the user why.

When one process fails, the others lose their connections to it and fail as well, with messages that help nobody.
"""

import os
from pathlib import Path

FAILURE_FILE = "GORA_FAILURE_FILE"
"""Names a file, in the environment of processes that were started together; the first to fail makes it."""

_claimed_by_this: str | None = None
_kept: tuple[BaseException, Path] | None = None


def first_to_fail(code: int = 1) -> bool:
    """Whether no other process of this run has failed before, however often it is asked; true for a process alone.

    Args:
        code: the exit code of this process, with which the whole run will answer.
    """
    global _claimed_by_this
    path = os.environ.get(FAILURE_FILE)
    if path is None or path == _claimed_by_this:
        return True
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, str(code).encode())
        os.close(descriptor)
    except FileExistsError:
        return False
    except OSError:
        # The launcher has gone, and its folder with it.
        return True
    _claimed_by_this = path
    return True


def keep_traceback(error: BaseException, path: Path) -> None:
    """Note that the traceback of an error is in a file, so that the terminal need not show it."""
    global _kept
    _kept = (error, path)


def kept_traceback(error: BaseException) -> Path | None:
    """The file that holds the traceback of an error, if one does."""
    return _kept[1] if _kept is not None and _kept[0] is error else None
