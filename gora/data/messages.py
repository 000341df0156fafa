"""How messages about data name things: columns in quotes, the nearest known name, and what a value is."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LONGEST = 40


def quoted(names: Iterable[str]) -> str:
    """`'query', 'response'`."""
    return ", ".join(repr(name) for name in names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` - did you mean 'response'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" - did you mean {near[0]!r}?" if near else ""


def siblings_like(path: str) -> str:
    """` - did you mean 'data/train.jsonl'?` with the nearest names beside a path that does not exist, or nothing."""
    missing = Path(path).expanduser()
    if not missing.parent.is_dir():
        return f": there is no folder {str(missing.parent)!r}."
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=3)
    return f" - did you mean {' or '.join(repr(str(missing.with_name(name))) for name in near)}?" if near else ""


def described(value: Any) -> str:
    """What a value is, as a reader of the file would say it: `null`, `the number 8`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= _LONGEST else value[:_LONGEST] + '...'!r}"
    kinds: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"a {type(value).__name__}")
