"""What comes back from an OpenAI-compatible endpoint: bodies, chat completions, errors and pauses."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO

_LARGEST_BODY = 16 * 2**20
_SHOWN = 300


class Garbled(Exception):
    """The endpoint answered with something that is no chat completion."""


@dataclass(frozen=True)
class Reply:
    """What the model said, and how many tokens the endpoint counted for it; 0 where it does not say."""

    text: str
    tokens: int


def read_body(stream: IO[bytes], deadline: float) -> bytes:
    """A whole body; the socket's own timeout alone would let an endpoint trickle for ever.

    Args:
        stream: an HTTP response.
        deadline: when it must be complete, on the monotonic clock.

    Raises:
        OSError: it is late, or breaks off.
        Garbled: no chat completion is that large.
    """
    parts, size = [], 0
    read = getattr(stream, "read1", stream.read)
    while part := read(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _LARGEST_BODY:
            raise Garbled(f"more than {_LARGEST_BODY // 2**20} MiB")
    # What is still due by the Content-Length header.
    if getattr(stream, "length", None):
        raise ConnectionResetError("the answer breaks off")
    return b"".join(parts)


def reply(text: str) -> Reply:
    """The first choice of a chat completion; raises Garbled."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Garbled(f"no JSON: {_short(text)!r}") from error
    try:
        said = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Garbled(f"no choices[0].message.content: {_short(text)!r}") from error
    if not isinstance(said, str):
        raise Garbled(f"no text in choices[0].message.content: {_short(text)!r}")
    usage = body.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
    return Reply(said, tokens if isinstance(tokens, int) else 0)


def fault(text: str) -> tuple[str, str, str]:
    """Code, parameter and message of an error in OpenAI's form; the text itself where it has another."""
    try:
        error = json.loads(text)["error"]
        return str(error.get("code")), str(error.get("param")), _short(str(error.get("message") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", "", _short(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is read as one of UTC, as the standard has it.
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
