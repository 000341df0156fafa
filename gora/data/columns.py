"""A text with columns in braces, filled in from a row."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gora.data.messages import described, did_you_mean, quoted
from gora.data.rows import Unusable
from gora.data.segments import column_of
from gora.errors import InputError

_PIECES = re.compile(
    r"(?P<brace>\{\{|\}\})"
    # An optional column that stands alone takes its line with it: the line's end, or on the last line the one before.
    r"|(?P<line>(?:(?<=\n)|\A)[ \t]*\{(?P<alone>[^{}]+)\?\}[ \t]*(?:\n|\Z)|\n[ \t]*\{(?P<last>[^{}]+)\?\}[ \t]*\Z)"
    r"|\{(?P<column>[^{}]+)\}"
    r"|(?P<lone>[{}])"
)


@dataclass(frozen=True, slots=True)
class _Part:
    """Literal text, or a column with the text around it, which goes with an optional column that is empty."""

    before: str = ""
    column: str | None = None
    after: str = ""
    optional: bool = False


class RowTemplate:
    """`data.template`, parsed.

    Args:
        template: literal text with columns in braces; doubled braces are text. `{column?}` is optional: where the row
            has no text there, nothing is written, and a line that holds nothing else is left out.
        prompt: the column that `{prompt}` stands for, whose values have to be text.
        known: the names of templates, one of which may have been meant.

    Raises:
        InputError: the template is malformed, or has no column.
    """

    def __init__(self, template: str, prompt: str, known: Iterable[str]) -> None:
        self._prompt = prompt
        self._parts = _parsed(template, prompt, known)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that every row must have, and the recipe key that asks for each."""
        asked = {part.column: "data.template" for part in self._parts if part.column and not part.optional}
        if self._prompt in asked:
            asked[self._prompt] = "data.prompt"
        return asked

    @property
    def optional(self) -> set[str]:
        """The columns that a row may have."""
        return {part.column for part in self._parts if part.column and part.optional} - set(self.columns)

    def text(self, row: dict[str, Any]) -> str:
        """The text for one row; raises Unusable."""
        return "".join(self._written(row, part) for part in self._parts)

    def nulls(self, row: dict[str, Any]) -> list[str]:
        """The columns beside the prompt that are null in a row, which are written as an empty text."""
        return [column for column in self.columns if column != self._prompt and column in row and row[column] is None]

    def _written(self, row: dict[str, Any], part: _Part) -> str:
        if part.column is None:
            return part.before
        if part.optional and is_empty(row.get(part.column)):
            return ""
        return part.before + self._value(row, part.column) + part.after

    def _value(self, row: dict[str, Any], column: str) -> str:
        value = column_of(row, column)
        if isinstance(value, str):
            return value
        # Beside the prompt a number, such as a score or a year, reads the same in text, and null is an empty text; a
        # prompt that is a number or null is a mistake.
        if column != self._prompt and value is None:
            return ""
        if column != self._prompt and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise Unusable(f"column {column!r} must be text, not {described(value)}")


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, an empty list or object, or a text of white space."""
    return value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip())


def _parsed(template: str, prompt: str, known: Iterable[str]) -> list[_Part]:
    """The template's literal texts and columns, in order."""

    def column(name: str) -> str:
        return prompt if name == "prompt" else name

    parts: list[_Part] = []
    end = 0
    for match in _PIECES.finditer(template):
        parts.append(_Part(template[end : match.start()]))
        end = match.end()
        if match["lone"]:
            raise InputError(
                f"data.template has a lone {match['lone']!r} in {template!r}. Double a brace that is text."
            )
        if match["brace"]:
            parts.append(_Part(match["brace"][0]))
        elif match["line"]:
            name = match["alone"] or match["last"]
            before, _, after = match["line"].partition(f"{{{name}?}}")
            parts.append(_Part(before, column(name), after, optional=True))
        else:
            name = match["column"].removesuffix("?")
            parts.append(_Part("", column(name), "", optional=name != match["column"]))
    parts.append(_Part(template[end:]))
    if not any(part.column for part in parts):
        near = did_you_mean(template, known) or "."
        raise InputError(
            f"data.template {template!r} is neither one of {quoted(known)} "
            f"nor a text with a column in braces, such as '{{prompt}}'{near}"
        )
    return parts
