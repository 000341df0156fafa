"""The label of a classification: the number of a choice."""

import re
from collections.abc import Sequence
from typing import Any

from gora.data.messages import described
from gora.data.rows import Unusable
from gora.data.segments import column_of


def choice_of(row: dict[str, Any], column: str, choices: Sequence[str], *, typed: bool) -> int:
    """The number of a row's choice, from 0.

    Args:
        row: the row.
        column: the column that holds it.
        choices: the labels.
        typed: whether values have types; without them (CSV) it is a number in digits.

    Raises:
        Unusable: the column is missing or holds no number of a choice.
    """
    value = column_of(row, column)
    if not typed and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Unusable(f"column {column!r} must be the number of a choice, not {described(value)}")
    if not 0 <= value < len(choices):
        raise Unusable(f"column {column!r} is {value}; data.choices has the numbers 0 to {len(choices) - 1}")
    return value
