"""The instruction format: a prompt, put into a template, and a response that is trained.

A separator at the end of a template is trained with the response: most tokenizers join a space with the word after it,
so a prompt that ends in one would make the model continue from a token that it has hardly ever seen there.
"""

from typing import Any

from gora.data.choices import choice_of
from gora.data.columns import RowTemplate
from gora.data.messages import described
from gora.data.rows import Unusable
from gora.data.segments import Segment, code_only, column_of, joined
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
        self._template = RowTemplate(template, data.prompt, TEMPLATES)

    @property
    def title(self) -> str:
        """`format instruction, template alpaca`."""
        name = self._data.template if self._data.template in TEMPLATES else repr(self._data.template)
        return f"format instruction, template {name}"

    @property
    def columns(self) -> dict[str, str]:
        """The prompt column, if the template has it, the template's other columns, and the response column."""
        return {**self._template.columns, self._data.response: "data.response"}

    @property
    def asked(self) -> set[str]:
        """The columns that the template has a place for."""
        return set(self._template.columns)

    def read(self, row: dict[str, Any]) -> list[Segment]:
        """The segments of one row, neighbours of one kind joined; raises Unusable."""
        return joined(self.segments(row))

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The prompt, unsupervised, and the response; raises Unusable."""
        response = self._response(row)
        answer = Segment(self.separator + response, True)
        answer = code_only(answer, response) if self._data.supervise == "code" else answer
        return [Segment(self.prompt(row), False), answer]

    def prompt(self, row: dict[str, Any]) -> str:
        """What stands before the response; raises Unusable."""
        return self._template.text(row)

    def notes(self) -> list[str]:
        """Nothing about this format depends on the tokenizer."""
        return []

    def _response(self, row: dict[str, Any]) -> str:
        column, choices = self._data.response, self._data.choices
        if choices is not None:
            return choices[choice_of(row, column, choices, typed=self._typed)]
        value = column_of(row, column)
        if not isinstance(value, str):
            raise Unusable(f"column {column!r} must be text, not {described(value)}")
        if not value.strip():
            raise Unusable(
                f"column {column!r} is {'only white space' if value else 'empty'}: there is nothing to train on"
            )
        return value


def _without_separator(template: str) -> tuple[str, str]:
    kept = template.rstrip(" ")
    return kept, template[len(kept) :]
