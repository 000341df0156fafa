"""The label of a classification: the number of a choice, or its name."""

import re
from collections.abc import Sequence
from typing import Any

from gora.data.messages import described, did_you_mean
from gora.data.rows import Unusable
from gora.data.segments import column_of


def choice_of(row: dict[str, Any], column: str, choices: Sequence[str], *, typed: bool) -> int:
    """The number of a row's choice, from 0.

    Args:
        row: the row.
        column: the column that holds it, as its number or as its name.
        choices: the names of the labels.
        typed: whether values have types; without them (CSV) a number is written in digits.

    Raises:
        Unusable: the column is missing or holds neither, or digits that could be the number of one and the name of
            another.
    """
    value = column_of(row, column)
    digits = isinstance(value, str) and not typed and re.fullmatch(r"[0-9]{1,9}", value.strip()) is not None
    if isinstance(value, str) and value in choices:
        named = choices.index(value)
        if digits and int(value) != named:
            raise Unusable(
                f"column {column!r} is {value}, which is the name of choice {named} in data.choices and could be the "
                "number of another; use a format with types, such as JSONL, where names are texts"
            )
        return named
    if digits:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise Unusable(f"column {column!r} must be the number or the name of a choice, not {described(value)}{near}")
    if not 0 <= value < len(choices):
        raise Unusable(f"column {column!r} is {value}; data.choices has the numbers 0 to {len(choices) - 1}")
    return value
