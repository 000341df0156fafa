"""metrics.jsonl: one JSON object a line, each line written whole."""

import json
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.files import append_line, parse_json, write_text


class Metrics:
    """The metrics file of one run.

    Args:
        path: the file.
        last_step: lines of later steps are dropped, as a resumed run writes them again; 0 starts an empty file.
        write: off in all of several processes but one.
    """

    def __init__(self, path: Path, last_step: int = 0, *, write: bool = True) -> None:
        self._path, self._write = path, write
        if not write:
            return
        kept = [text for text, line in _lines(path) if line["step"] <= last_step] if last_step else []
        write_text(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, **values: Any) -> None:
        """Append one line; NaN and infinity become text, since JSON has no word for them."""
        if not self._write:
            return
        safe = {key: value if _is_json(value) else str(value) for key, value in values.items()}
        append_line(self._path, json.dumps({"step": step, **safe}))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file; empty where there is none.

    Raises:
        InputError: it cannot be read.
    """
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """All whole lines, as they are and what they say; a line that a power cut tore is left out."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Delete it, or restore it.") from None
    return [(text, line) for text in texts if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
        return line if isinstance(line["step"], int) else None
    except (ValueError, TypeError, KeyError):
        return None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
