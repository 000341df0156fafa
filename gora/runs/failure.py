"""Why a command ended early, as data: `failure.json` in the run folder, and a line in its log."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gora.disk import FULL, is_full
from gora.errors import GoraError
from gora.files import append_line, read_json, write_json
from gora.runs.folder import RunFolder
from gora.runtime.failure import first_to_fail, keep_traceback
from gora.runtime.interrupt import StopSignal
from gora.runtime.out_of_memory import is_out_of_memory

RECORD = "GORA_RECORD_REFUSALS"
"""Set for the runs of a comparison, whose folder also tells why a run was refused before it began."""
REFUSED = "refused"
"""Code of an error that says what a folder holds: it is no failure of the run that the folder holds."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a command ended early.

    Attributes:
        code: the kind of failure, for programs: `not-finite`, `input`, `out-of-memory`, `disk-full`, ...
        message: for people.
        exit_code: of the command.
        rows: the rows it was about, where it was about rows.
    """

    code: str
    message: str
    exit_code: int = 1
    rows: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What an exception tells."""
        if isinstance(error, GoraError):
            rows: Sequence[str] = getattr(error, "rows", ())
            return cls(code=error.code, message=str(error), exit_code=error.exit_code, rows=tuple(rows))
        if isinstance(error, StopSignal):
            return cls(code="interrupted", message=f"Stopped by signal {error.number}.", exit_code=128 + error.number)
        if is_out_of_memory(error):
            code = "out-of-memory"
        elif is_full(error):
            code = FULL
        elif isinstance(error, OSError):
            code = "os"
        else:
            code = "crash"
        return cls(code=code, message=f"{type(error).__name__}: {error}")


def record_failure(path: Path, error: BaseException) -> None:
    """Write down why the command that owns a folder has failed; the first of several processes that fail does so.

    What nobody foresaw goes to the log with its traceback, also before the command has begun to write there. An error
    while this is written is swallowed: it must not hide the one that led here.
    """
    folder, failure = RunFolder(path), Failure.of(error)
    if not first_to_fail(failure.exit_code):
        return
    recorded = bool(os.environ.get(RECORD))
    unforeseen = not isinstance(error, (GoraError, StopSignal))
    if not folder.log.exists() and not recorded and not unforeseen:
        # The command was refused before it had begun: nothing of it stays.
        return
    try:
        if failure.code != REFUSED or recorded:
            write_json(folder.failure, asdict(failure))
        if unforeseen:
            append_line(folder.log, "".join(traceback.format_exception(error)).rstrip())
            keep_traceback(error, folder.log)
        if folder.log.exists():
            append_line(folder.log, f"error: {failure.message}")
    except (OSError, GoraError):
        pass


def read_failure(folder: RunFolder) -> Failure | None:
    """Why the last command in the folder has failed, or None."""
    try:
        told = read_json(folder.failure)
        return Failure(**{**told, "rows": tuple(told["rows"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Failure(code="unknown", message=f"{folder.failure} cannot be read: {error}")
