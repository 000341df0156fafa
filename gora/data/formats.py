"""A row becomes what examples are encoded from: pieces of text, each trained on or not, or texts and their label."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from gora.data.chat import Chat
from gora.data.classification import Classification
from gora.data.columns import is_empty
from gora.data.instruction import Instruction
from gora.data.messages import did_you_mean, quoted
from gora.data.reading import Reading
from gora.data.rows import BadRow, Rows, Untrained, Unusable
from gora.data.text import PlainText
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
        """The columns that rows must have, and the recipe key that asks for each."""

    @property
    def optional(self) -> set[str]:
        """The columns that it reads where they are there."""

    @property
    def refused(self) -> dict[str, str]:
        """Columns that must not go unread, and what to do about them."""

    def read(self, row: dict[str, Any]) -> Reading:
        """The examples of a row; raises Unusable or Untrained. The same row gives the same examples, always."""

    def notes(self) -> list[str]:
        """Whole sentences on what the user should know about this format with this tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Formatted:
    """One source, brought into a format.

    Attributes:
        rows: the source.
        fmt: the format.
        read: what each row was read as, None where it is left out.
        bad: all bad rows of the source, the unreadable ones included, in its order.
        unread: what of its rows nobody reads, and how often it is there.
    """

    rows: Rows
    fmt: Format
    read: list[Reading | None]
    bad: list[BadRow]
    unread: Counter[str] = field(default_factory=Counter)

    @property
    def untrained(self) -> int:
        """Rows that are as they should be, but hold nothing of what is trained; they are not bad."""
        return self.rows.read - len(self.bad) - sum(one is not None for one in self.read)

    @property
    def more(self) -> int:
        """How many examples there are beyond one for each row that is read."""
        return sum(len(one.examples) - 1 for one in self.read if one is not None)

    def examples(self) -> Iterator[Any]:
        """What the encoder takes, for every example."""
        for reading in self.read:
            yield from reading.examples if reading else ()

    def origins(self) -> Iterator[tuple[int, str]]:
        """The index of the row of every example, and its place: `train.jsonl:17`, `train.jsonl:17 (message 4)`."""
        for index, reading in enumerate(self.read):
            for number in range(len(reading.examples) if reading else 0):
                name = f" ({reading.names[number]})" if reading and reading.names else ""
                yield index, self.rows.where(index) + name

    def notice(self) -> str | None:
        """A line that names what nobody reads, or None."""
        if not self.unread:
            return None
        named = ", ".join(f"{what} ({count:,})" for what, count in self.unread.most_common())
        hint = " Name columns that need not be read in `data.ignore`." if "column '" in named else ""
        return f"{self.rows.name}: not read, and how often it is there: {named}.{hint}"


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
    if data.format == "text":
        return PlainText(data)
    if data.format == "chat":
        return Chat(data, tokenizer)
    return Instruction(data, typed=typed, eos=str(tokenizer.eos_token or ""))


def bring_into(rows: Rows, fmt: Format, ignore: list[str]) -> Formatted:
    """Bring every row into the format.

    Args:
        rows: the source.
        fmt: the format.
        ignore: columns that are not read on purpose.

    Raises:
        InputError: a column that the format reads is in no row at all, or one that it must not pass over is not read.
    """
    _check_columns(rows, fmt, ignore)
    read: list[Reading | None] = []
    bad = list(rows.bad)
    unread = _unread_columns(rows, fmt, ignore)
    for index, row in enumerate(rows.rows):
        reading = None
        try:
            reading = fmt.read({name: value for name, value in row.items() if name not in ignore} if ignore else row)
        except Untrained:
            pass
        except Unusable as fault:
            bad.append(rows.unusable(index, str(fault)))
        read.append(reading)
        unread.update(reading.unread if reading else ())
    return Formatted(rows=rows, fmt=fmt, read=read, bad=sorted(bad, key=lambda row: row.position), unread=unread)


def _check_columns(rows: Rows, fmt: Format, ignore: list[str]) -> None:
    for column, key in fmt.columns.items():
        if column in ignore:
            raise InputError(f"data.ignore names the column {column!r}, which {key} asks for. Keep one of the two.")
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


def _unread_columns(rows: Rows, fmt: Format, ignore: list[str]) -> Counter[str]:
    """How many rows say something in each column that nobody reads."""
    passed_over = set(fmt.columns) | fmt.optional | set(ignore)
    counts = Counter(
        column
        for row in rows.rows
        for column, value in row.items()
        if column not in passed_over and not is_empty(value)
    )
    problems = [
        f"column {column!r} has a value in {counts[column]:,} of {len(rows.rows):,} rows: {advice}"
        for column, advice in fmt.refused.items()
        if counts[column]
    ]
    if problems:
        raise InputError(f"{rows.name} holds what {fmt.title} does not read but should.", problems)
    return Counter({f"column {column!r}": count for column, count in counts.items()})
