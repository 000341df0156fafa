"""metrics.jsonl: one JSON object a line, each line written whole."""

import json
from pathlib import Path
from typing import Any

from gora.files import append_line, write_text


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
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= last_step] if last_step else []
        write_text(path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, **values: Any) -> None:
        """Append one line; NaN and infinity become text, since JSON has no word for them."""
        if not self._write:
            return
        safe = {key: value if _is_json(value) else str(value) for key, value in values.items()}
        append_line(self._path, json.dumps({"step": step, **safe}))


def _lines(path: Path) -> list[str]:
    """All whole lines; a line that a power cut tore is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if _parses(line)]


def _parses(line: str) -> bool:
    try:
        return "step" in json.loads(line)
    except (json.JSONDecodeError, TypeError):
        return False


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
