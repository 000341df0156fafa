"""The text format: a column of text of which every token is trained, as in continued pre-training."""

from typing import Any

from gora.data.messages import described
from gora.data.reading import Reading
from gora.data.rows import Unusable
from gora.data.segments import Segment, column_of, joined
from gora.recipe.schema import DataSection


class PlainText:
    """Rows with a column of text.

    Args:
        data: the recipe's section.
    """

    title = "format text"

    def __init__(self, data: DataSection) -> None:
        self._column = data.text

    @property
    def columns(self) -> dict[str, str]:
        """The column with the text."""
        return {self._column: "data.text"}

    @property
    def optional(self) -> set[str]:
        """No others."""
        return set()

    @property
    def refused(self) -> dict[str, str]:
        """Nothing beside a text changes what it says."""
        return {}

    def read(self, row: dict[str, Any]) -> Reading:
        """The text of one row, all of it trained; raises Unusable."""
        value = column_of(row, self._column)
        if not isinstance(value, str):
            raise Unusable(f"column {self._column!r} must be text, not {described(value)}")
        if not value.strip():
            raise Unusable(
                f"column {self._column!r} is {'only white space' if value else 'empty'}: there is nothing to train on"
            )
        return Reading([joined([Segment(value, True)])])

    def notes(self) -> list[str]:
        """Nothing about this format depends on the tokenizer."""
        return []
