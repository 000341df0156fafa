"""A text with columns in braces, filled in from a row."""

import re
from collections.abc import Iterable
from typing import Any

from gora.data.messages import described, did_you_mean, quoted
from gora.data.rows import Unusable
from gora.data.segments import column_of
from gora.errors import InputError

_PIECES = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<column>[^{}]+)\}|(?P<lone>[{}])")


class RowTemplate:
    """`data.template`, parsed.

    Args:
        template: literal text with columns in braces; doubled braces are text.
        prompt: the column that `{prompt}` stands for, whose values have to be text.
        known: the names of templates, one of which may have been meant.

    Raises:
        InputError: the template is malformed, or has no column.
    """

    def __init__(self, template: str, prompt: str, known: Iterable[str]) -> None:
        self._prompt = prompt
        self._pieces = _parsed(template, prompt, known)

    @property
    def columns(self) -> dict[str, str]:
        """The columns it has, and the recipe key that asks for each."""
        asked = {name: "data.template" for name, is_column in self._pieces if is_column}
        if self._prompt in asked:
            asked[self._prompt] = "data.prompt"
        return asked

    def text(self, row: dict[str, Any]) -> str:
        """The text for one row; raises Unusable."""
        return "".join(self._value(row, piece) if is_column else piece for piece, is_column in self._pieces)

    def _value(self, row: dict[str, Any], column: str) -> str:
        value = column_of(row, column)
        if isinstance(value, str):
            return value
        # A number beside the prompt, such as a score or a year, reads the same in text; a prompt that is a number
        # is a mistake.
        if column != self._prompt and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise Unusable(f"column {column!r} must be text, not {described(value)}")


def _parsed(template: str, prompt: str, known: Iterable[str]) -> list[tuple[str, bool]]:
    """The template's literal pieces (False) and column names (True), in order."""
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in _PIECES.finditer(template):
        pieces.append((template[end : match.start()], False))
        end = match.end()
        if match["lone"]:
            raise InputError(
                f"data.template has a lone {match['lone']!r} in {template!r}. Double a brace that is text."
            )
        if match["brace"]:
            pieces.append((match["brace"][0], False))
        else:
            pieces.append((prompt if match["column"] == "prompt" else match["column"], True))
    pieces.append((template[end:], False))
    if not any(is_column for _, is_column in pieces):
        near = did_you_mean(template, known) or "."
        raise InputError(
            f"data.template {template!r} is neither one of {quoted(known)} "
            f"nor a text with a column in braces, such as '{{prompt}}'{near}"
        )
    return pieces
