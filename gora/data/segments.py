"""Pieces of text that a row is made of."""

from dataclasses import dataclass
from typing import Any

from gora.data.rows import Unusable
from gora.data.wording import did_you_mean, quoted


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, and whether its tokens are trained on."""

    text: str
    supervised: bool


def column_of(row: dict[str, Any], column: str) -> Any:
    """The value of a column; raises Unusable with the columns that are there."""
    if column not in row:
        raise Unusable(f"column {column!r} is missing; the row has {quoted(row) or 'none'}{did_you_mean(column, row)}")
    return row[column]
