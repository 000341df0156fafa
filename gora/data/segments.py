"""Pieces of text that a row is made of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gora.data.code_blocks import Span, code_spans
from gora.data.messages import described, did_you_mean, quoted
from gora.data.rows import Untrained, Unusable


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, which is tokenised on its own.

    Attributes:
        text: the text.
        supervised: whether a model writes it, so that its tokens are trained on.
        spans: the parts of a supervised text that are trained, start and end in characters; None is all of it.
    """

    text: str
    supervised: bool
    spans: tuple[Span, ...] | None = None

    @property
    def trained(self) -> bool:
        """Whether any part of it is trained."""
        return self.supervised and self.spans != ()


def code_only(segment: Segment, answer: str) -> Segment:
    """The same text, of which only code blocks are trained, and what ends the turn behind the answer.

    The end belongs to it because a model that never learns to end an answer would not stop. An answer that starts with
    code is trained from the very start of its segment, where a template may have put a space.

    Args:
        segment: a supervised segment.
        answer: what it says, without what a template puts around it.

    Raises:
        Unusable: the segment does not hold the answer.
    """
    body = answer.strip()
    before, found, _ = segment.text.partition(body)
    if not found:
        raise Unusable("the chat template changes the answer, so that its code cannot be found (`data.supervise`)")
    spans = [(len(before) + start, len(before) + end) for start, end in code_spans(body)]
    if spans:
        if spans[0][0] == len(before):
            spans[0] = (0, spans[0][1])
        spans.append((len(before) + len(body), len(segment.text)))
    return Segment(segment.text, True, tuple(spans))


def merged(one: Segment, other: Segment) -> Segment:
    """Two neighbours of one kind as one segment."""
    if one.spans is None and other.spans is None:
        return Segment(one.text + other.text, one.supervised)
    shifted = ((len(one.text) + start, len(one.text) + end) for start, end in _spans(other))
    return Segment(one.text + other.text, one.supervised, (*_spans(one), *shifted))


def _spans(segment: Segment) -> Iterable[Span]:
    return ((0, len(segment.text)),) if segment.spans is None else segment.spans


def column_of(row: dict[str, Any], column: str) -> Any:
    """The value of a column; raises Unusable with the columns that are there."""
    if column not in row:
        raise Unusable(f"column {column!r} is missing; the row has {quoted(row) or 'none'}{did_you_mean(column, row)}")
    return row[column]


def from_json(value: Any, what: str) -> Any:
    """The value that a text holds as JSON; anything but a text as it is. Raises Unusable."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{what} is {described(value)}, which is not JSON ({error})") from error


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind as one segment, without empty ones, and without what follows the last trained one.

    What follows is never predicted, so it would only cost time.

    Raises:
        Unusable: nothing is supervised, or the text cannot be written as UTF-8.
        Untrained: nothing of what is supervised is trained.
    """
    found: list[Segment] = []
    for segment in segments:
        if found and found[-1].supervised == segment.supervised:
            found[-1] = merged(found[-1], segment)
        elif segment.text:
            found.append(segment)
    if not any(segment.supervised for segment in found):
        raise Unusable("the response has no text: there is nothing to train on")
    while found and not found[-1].trained:
        found.pop()
    if not found:
        raise Untrained
    for segment in found:
        check_text(segment.text)
    return found


def check_text(text: str) -> None:
    """Refuse what no tokenizer could read; raises Unusable."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"the text holds half of a surrogate pair, {text[error.start]!a}") from error
