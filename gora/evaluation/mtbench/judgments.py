"""Judgements on disk: one line each as soon as it is there, in FastChat's form, so that none is asked for twice."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.files import append_line

LOWEST, HIGHEST = 1, 10


@dataclass(frozen=True)
class Judgment:
    """What the judge made of one answer.

    Attributes:
        rating: 1 to 10, or None if there is none.
        reason: why there is none.
        text: what the judge said last.
    """

    rating: float | None
    reason: str | None
    text: str | None


class Journal:
    """The file of judgements; a request's fingerprint tells which judgement is its own.

    Several threads may add to it. A line that cannot be read, as a killed process may leave one, counts as not there.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        content = path.read_bytes() if path.exists() else b""
        self._rated = dict(entry for line in content.splitlines() if (entry := _rated(line)))
        if content and not content.endswith(b"\n"):
            append_line(path, "")

    def rated(self, fingerprint: str) -> Judgment | None:
        """The judgement with a rating that belongs to a request, if there is one."""
        return self._rated.get(fingerprint)

    def add(self, fingerprint: str, judgment: Judgment, about: dict[str, Any]) -> None:
        """Write a judgement; when this returns, it is on the disk.

        Args:
            fingerprint: of the request.
            judgment: what came of it.
            about: what was judged, by the names that FastChat's files use.
        """
        told = {"judgment": judgment.text, "score": judgment.rating, "reason": judgment.reason}
        with self._lock:
            append_line(self.path, json.dumps({**about, **told, "fingerprint": fingerprint}), durable=True)


def _rated(line: bytes) -> tuple[str, Judgment] | None:
    try:
        record = json.loads(line)
        fingerprint, rating, text = record["fingerprint"], record["score"], record["judgment"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(fingerprint, str) or not is_rating(rating):
        return None
    return fingerprint, Judgment(float(rating), None, text)


def is_rating(value: Any) -> bool:
    """Whether a value is a number on the judge's scale."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and LOWEST <= value <= HIGHEST
    )
