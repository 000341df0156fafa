"""A row becomes pieces of text, each trained on or not."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from gora.data.chat import Chat
from gora.data.instruction import Instruction
from gora.data.rows import BadRow, Rows, Untrained, Unusable
from gora.data.segments import Segment, merged
from gora.data.wording import did_you_mean, quoted
from gora.errors import InputError
from gora.recipe.schema import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Format(Protocol):
    """A way from a row to segments."""

    @property
    def title(self) -> str:
        """What messages call it: `format chat, template chatml`."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns it reads, and the recipe key that asks for each."""

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The segments of one row, the last one supervised; raises Unusable."""

    def notes(self) -> list[str]:
        """Whole sentences on what the user should know about this format with this tokenizer."""


def format_for(data: DataSection, tokenizer: "PreTrainedTokenizerBase", *, typed: bool = True) -> Format:
    """The format that the recipe asks for.

    Args:
        data: the recipe's section.
        tokenizer: gives the chat template.
        typed: `Rows.typed` of the rows to come.

    Raises:
        InputError: the template does not exist or is malformed, or a chat has none.
    """
    return Chat(data, tokenizer) if data.format == "chat" else Instruction(data, typed=typed)


def segments_of(rows: Rows, fmt: Format) -> tuple[list[list[Segment] | None], list[BadRow]]:
    """Bring every row into the format.

    Returns:
        The segments of each row, None where it is left out; and all bad rows of the source, the unreadable ones
        included, in its order. A row without anything to train is left out and is not bad.

    Raises:
        InputError: a column that the format reads is in no row at all.
    """
    _check_columns(rows, fmt)
    found: list[list[Segment] | None] = []
    bad = list(rows.bad)
    for index, row in enumerate(rows.rows):
        try:
            found.append(joined(fmt.segments(row)))
        except Untrained:
            found.append(None)
        except Unusable as fault:
            found.append(None)
            bad.append(rows.unusable(index, str(fault)))
    return found, sorted(bad, key=lambda row: row.position)


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
        _check_text(segment.text)
    return found


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"the text holds half of a surrogate pair, {text[error.start]!a}") from error


def _check_columns(rows: Rows, fmt: Format) -> None:
    seen = rows.columns()
    problems = [
        f"{key} asks for the column {column!r}{did_you_mean(column, seen)}"
        for column, key in fmt.columns.items()
        if column not in seen
    ]
    if rows.rows and problems:
        raise InputError(
            f"No row of {rows.name} has what the recipe asks for. The columns are {quoted(seen)}.", problems
        )
