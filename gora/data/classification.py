"""Rows for a classification head: a text or a pair of texts, and the number of their label."""

from dataclasses import dataclass
from typing import Any

from gora.data.choices import choice_of
from gora.data.columns import RowTemplate
from gora.data.messages import described
from gora.data.reading import Reading
from gora.data.rows import Unusable
from gora.data.segments import check_text, column_of
from gora.recipe.schema import DataSection

_ONLY = ("plain",)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """What a classifier reads, and what it should say.

    Attributes:
        text: the text.
        pair: the second text of a pair, such as the hypothesis after a premise.
        label: the number of the label.
    """

    text: str
    pair: str | None
    label: int


class Classification:
    """Rows with one or two columns of text and one with the number of a label.

    Args:
        data: the recipe's section, with `choices`.
        typed: whether values have types; without them (CSV) a label is a number in digits.

    Raises:
        InputError: the template is malformed.
    """

    def __init__(self, data: DataSection, *, typed: bool = True) -> None:
        self._data = data
        self._typed = typed
        self._choices = data.choices or ()
        self._template = RowTemplate("{prompt}" if data.template == "plain" else data.template, data.prompt, _ONLY)

    @property
    def title(self) -> str:
        """`head classification, pairs of sentence1 and sentence2`."""
        texts = " and ".join(repr(name) for name in self.columns if name != self._data.response)
        return f"head classification, {'pairs' if self._data.prompt_pair else 'texts'} of {texts}"

    @property
    def columns(self) -> dict[str, str]:
        """The template's columns, that of the second text, and that of the label."""
        pair = {self._data.prompt_pair: "data.prompt_pair"} if self._data.prompt_pair else {}
        return {**self._template.columns, **pair, self._data.response: "data.response"}

    @property
    def optional(self) -> set[str]:
        """The template's optional columns."""
        return self._template.optional

    @property
    def refused(self) -> dict[str, str]:
        """No column has a meaning of its own here."""
        return {}

    def read(self, row: dict[str, Any]) -> Reading:
        """One row; raises Unusable."""
        nulls = [f"null in column {column!r}, which is read as an empty text" for column in self._template.nulls(row)]
        return Reading([self.labelled(row)], nulls)

    def labelled(self, row: dict[str, Any]) -> LabelledText:
        """The text, its pair and the label of one row; raises Unusable."""
        text = _readable(self._template.text(row), self._data.prompt)
        label = choice_of(row, self._data.response, self._choices, typed=self._typed)
        return LabelledText(text, self._pair(row, self._data.prompt_pair), label)

    def notes(self) -> list[str]:
        """Nothing about this format depends on the tokenizer."""
        return []

    def _pair(self, row: dict[str, Any], column: str | None) -> str | None:
        if column is None:
            return None
        value = column_of(row, column)
        if not isinstance(value, str):
            raise Unusable(f"column {column!r} must be text, not {described(value)}")
        return _readable(value, column)


def _readable(text: str, column: str) -> str:
    if not text.strip():
        raise Unusable(f"column {column!r} is {'only white space' if text else 'empty'}: there is nothing to classify")
    check_text(text)
    return text
