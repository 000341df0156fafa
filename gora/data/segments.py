"""Pieces of text that a row is made of."""

from collections.abc import Iterable
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


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind as one segment, without empty ones, and without what follows the last supervised one.

    What follows is never predicted, so it would only cost time.

    Raises:
        Unusable: nothing is supervised, or the text cannot be written as UTF-8.
    """
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].supervised == segment.supervised:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.supervised)
        elif segment.text:
            merged.append(segment)
    while merged and not merged[-1].supervised:
        merged.pop()
    if not merged:
        raise Unusable("the response has no text: there is nothing to train on")
    for segment in merged:
        check_text(segment.text)
    return merged


def check_text(text: str) -> None:
    """Refuse what no tokenizer could read; raises Unusable."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"the text holds half of a surrogate pair, {text[error.start]!a}") from error
