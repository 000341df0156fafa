"""A row becomes what an example is encoded from: pieces of text, each trained on or not, or texts and their label."""

from typing import TYPE_CHECKING, Any, Protocol

from gora.data.chat import Chat
from gora.data.classification import Classification
from gora.data.instruction import Instruction
from gora.data.messages import did_you_mean, quoted
from gora.data.rows import BadRow, Rows, Untrained, Unusable
from gora.errors import InputError
from gora.recipe.schema import DataSection, Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Format(Protocol):
    """A way from a row to what its encoder takes."""

    @property
    def title(self) -> str:
        """What messages call it: `format chat, template chatml`."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns it reads, and the recipe key that asks for each."""

    def read(self, row: dict[str, Any]) -> Any:
        """What the encoder takes: segments, the last one supervised, or a labelled text; raises Unusable."""

    def notes(self) -> list[str]:
        """Whole sentences on what the user should know about this format with this tokenizer."""


def format_for(
    data: DataSection, tokenizer: "PreTrainedTokenizerBase", *, typed: bool = True, head: Head = "language"
) -> Format:
    """The format that the recipe asks for.

    Args:
        data: the recipe's section.
        tokenizer: gives the chat template.
        typed: `Rows.typed` of the rows to come.
        head: what the model has on top.

    Raises:
        InputError: the template does not exist or is malformed, or a chat has none.
    """
    if head == "classification":
        return Classification(data, typed=typed)
    return Chat(data, tokenizer) if data.format == "chat" else Instruction(data, typed=typed)


def segments_of(rows: Rows, fmt: Format) -> tuple[list[Any], list[BadRow]]:
    """Bring every row into the format.

    Returns:
        What each row was read as, None where it is left out; and all bad rows of the source, the unreadable ones
        included, in its order. A row without anything to train is left out and is not bad.

    Raises:
        InputError: a column that the format reads is in no row at all.
    """
    _check_columns(rows, fmt)
    found: list[Any] = []
    bad = list(rows.bad)
    for index, row in enumerate(rows.rows):
        try:
            found.append(fmt.read(row))
        except Untrained:
            found.append(None)
        except Unusable as fault:
            found.append(None)
            bad.append(rows.unusable(index, str(fault)))
    return found, sorted(bad, key=lambda row: row.position)


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
