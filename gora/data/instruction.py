"""The instruction format: a prompt, put into a template, and a response that is trained.

A separator at the end of a template is trained with the response: most tokenizers join a space with the word after it,
so a prompt that ends in one would make the model continue from a token that it has hardly ever seen there.
"""

import re
from typing import Any

from gora.data.rows import Unusable
from gora.data.segments import Segment, column_of
from gora.data.wording import described, did_you_mean, quoted
from gora.errors import InputError
from gora.recipe.schema import DataSection

TEMPLATES = {
    "plain": "{prompt}\n",
    # The wording of Stanford Alpaca for tasks without input. The space after the last colon is how MetaMath's and
    # LoRA-GA's scripts go on from it; training without it would leave those prompts one token off.
    "alpaca": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response: ",
    "qa": "Question: {prompt}\nAnswer: ",
}

_PIECES = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<column>[^{}]+)\}|(?P<lone>[{}])")


class Instruction:
    """Rows with a prompt column and a response column.

    Args:
        data: the recipe's section.
        typed: whether values have types; without them (CSV) a choice is a number in digits.

    Attributes:
        separator: what a response begins with, such as a space.

    Raises:
        InputError: the template is malformed.
    """

    def __init__(self, data: DataSection, *, typed: bool = True) -> None:
        self._data = data
        self._typed = typed
        template, self.separator = _without_separator(TEMPLATES.get(data.template, data.template))
        self._pieces = _parsed(template, data)

    @property
    def title(self) -> str:
        """`format instruction, template alpaca`."""
        name = self._data.template if self._data.template in TEMPLATES else repr(self._data.template)
        return f"format instruction, template {name}"

    @property
    def columns(self) -> dict[str, str]:
        """The prompt column, if the template has it, the template's other columns, and the response column."""
        asked = dict.fromkeys((name for name, is_column in self._pieces if is_column), "data.template")
        if self._data.prompt in asked:
            asked[self._data.prompt] = "data.prompt"
        return {**asked, self._data.response: "data.response"}

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The prompt, unsupervised, and the response; raises Unusable."""
        return [Segment(self.prompt(row), False), Segment(self.separator + self._response(row), True)]

    def prompt(self, row: dict[str, Any]) -> str:
        """What stands before the response; raises Unusable."""
        return "".join(self._column_text(row, piece) if is_column else piece for piece, is_column in self._pieces)

    @property
    def asked(self) -> set[str]:
        """The columns that the template has a place for."""
        return {name for name, is_column in self._pieces if is_column}

    def notes(self) -> list[str]:
        """Nothing about this format depends on the tokenizer."""
        return []

    def _column_text(self, row: dict[str, Any], column: str) -> str:
        value = column_of(row, column)
        if isinstance(value, str):
            return value
        # A number beside the prompt, such as a score or a year, reads the same in text; a prompt that is a number
        # is a mistake.
        if column != self._data.prompt and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise Unusable(f"column {column!r} must be text, not {described(value)}")

    def _response(self, row: dict[str, Any]) -> str:
        column, value = self._data.response, column_of(row, self._data.response)
        if self._data.choices is not None:
            return self._choice(column, value, self._data.choices)
        if not isinstance(value, str):
            raise Unusable(f"column {column!r} must be text, not {described(value)}")
        if not value.strip():
            raise Unusable(
                f"column {column!r} is {'only white space' if value else 'empty'}: there is nothing to train on"
            )
        return value

    def _choice(self, column: str, value: Any, choices: list[str]) -> str:
        if not self._typed and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Unusable(f"column {column!r} must be the number of a choice, not {described(value)}")
        if not 0 <= value < len(choices):
            raise Unusable(f"column {column!r} is {value}; data.choices has the numbers 0 to {len(choices) - 1}")
        return choices[value]


def _without_separator(template: str) -> tuple[str, str]:
    kept = template.rstrip(" ")
    return kept, template[len(kept) :]


def _parsed(template: str, data: DataSection) -> list[tuple[str, bool]]:
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
            pieces.append((data.prompt if match["column"] == "prompt" else match["column"], True))
    pieces.append((template[end:], False))
    if not any(is_column for _, is_column in pieces):
        near = did_you_mean(template, TEMPLATES) or "."
        raise InputError(
            f"data.template {template!r} is neither one of {quoted(TEMPLATES)} "
            f"nor a text with a column in braces, such as '{{prompt}}'{near}"
        )
    return pieces
