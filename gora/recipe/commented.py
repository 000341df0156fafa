"""A recipe as YAML, with a reason beside each line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gora.errors import InputError
from gora.recipe.document import parse_document
from gora.recipe.yaml_text import dump


def commented(values: Mapping[str, Any], why: Mapping[str, str]) -> str:
    """The recipe as YAML, a section at a time, with what each line was taken from.

    Args:
        values: settings by section.
        why: reasons by dotted key; lines without one stay bare.
    """
    lines: list[tuple[str, str]] = []
    for section, settings in values.items():
        if not isinstance(settings, Mapping):
            lines.append((_line(section, settings), why.get(section, "")))
            continue
        lines.append((f"{section}:", ""))
        lines += [(f"  {_line(key, value)}", why.get(f"{section}.{key}", "")) for key, value in settings.items()]
    width = max(len(line) for line, reason in lines if reason) + 2
    body = "\n".join(f"{line:<{width}}# {reason}" if reason else line for line, reason in lines)
    return f"# Written by gora init. What each setting means and which way it pulls: docs/recipe.md.\n{body}\n"


def _line(key: str, value: Any) -> str:
    """A setting on one line."""
    if isinstance(value, dict | list):
        return f"{key}: {dump(value, flow=True).strip()}"
    if isinstance(value, str) and "\n" in value:
        return f"{key}: {json.dumps(value, ensure_ascii=False)}"
    return dump({key: value}).strip()


def put(values: dict[str, Any], setting: str) -> None:
    """Put a setting of the command line where it belongs; what is wrong with it is said by `parse_recipe`."""
    key, equals, text = setting.partition("=")
    *sections, name = key.strip().split(".")
    with suppress(InputError):
        value = parse_document(f"value: {text}", setting).values["value"]
        for section in sections:
            inner = values.get(section)
            values = values.setdefault(section, {}) if isinstance(inner, dict | None) else {}
        if equals and name:
            values[name] = value
