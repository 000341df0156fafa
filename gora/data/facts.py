"""What was found in the rows of a source while they were checked; kept beside the examples that were made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NAMED_AT_MOST = 10
"""Bad rows of a source that are named; all are counted."""


@dataclass(kw_only=True)
class FileFacts:
    """What was found in one file.

    Attributes:
        name: what messages call it.
        rows: how many were met.
        bad: those of them that cannot be used.
        parsed: those of them that could be read at all.
    """

    name: str
    rows: int = 0
    bad: int = 0
    parsed: int = 0


@dataclass(kw_only=True)
class Facts:
    """What was found in a source, or in a part of it.

    Attributes:
        name: the source, as messages call it.
        files: its files in their order.
        named: the first of its bad rows, each with its place and its reason.
        columns: how many rows have each column, in the order of their first appearance.
        unread_columns: how many rows say something in each column that nobody reads.
        unread: how often something else is there that nobody reads.
        untrained: rows that are as they should be, but hold nothing of what is trained; they are not bad.
        more: how many examples there are beyond one for each row that is used.
        answering: examples with several supervised segments.
        dropped: examples that were too long, or had nothing to train on once cut.
    """

    name: str
    files: list[FileFacts] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    unread_columns: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    untrained: int = 0
    more: int = 0
    answering: int = 0
    dropped: int = 0

    @property
    def rows(self) -> int:
        """How many rows were met."""
        return sum(file.rows for file in self.files)

    @property
    def bad(self) -> int:
        """How many of them cannot be used."""
        return sum(file.bad for file in self.files)

    @property
    def examples(self) -> int:
        """How many examples the rows make before any is dropped."""
        return self.rows - self.bad - self.untrained + self.more

    def add(self, part: Facts) -> None:
        """Add what was found in the part or the source that follows."""
        for file in part.files:
            if not self.files or self.files[-1].name != file.name:
                self.files.append(FileFacts(name=file.name))
            last = self.files[-1]
            last.rows, last.bad, last.parsed = last.rows + file.rows, last.bad + file.bad, last.parsed + file.parsed
        self.named = (self.named + part.named)[:NAMED_AT_MOST]
        for mine, its in zip(self._counters(), part._counters(), strict=True):
            mine.update(its)
        self.untrained += part.untrained
        self.more += part.more
        self.answering += part.answering
        self.dropped += part.dropped

    def notice(self) -> str | None:
        """A line that names what nobody reads, or None."""
        columns = Counter({f"column {column!r}": count for column, count in self.unread_columns.items()})
        unread = columns + self.unread
        if not unread:
            return None
        named = ", ".join(f"{what} ({count:,})" for what, count in unread.most_common())
        hint = " Name columns that need not be read in `data.ignore`." if "column '" in named else ""
        return f"{self.name}: not read, and how often it is there: {named}.{hint}"

    def as_json(self) -> dict[str, Any]:
        """For `from_json`: all but the columns, which have been checked."""
        return {**vars(self), "files": [vars(file) for file in self.files], "columns": {}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Facts:
        """What `as_json` made; raises KeyError and TypeError."""
        counters = {name: Counter(values[name]) for name in ("columns", "unread_columns", "unread")}
        return cls(**{**values, **counters, "files": [FileFacts(**file) for file in values["files"]]})

    def _counters(self) -> Iterable[Counter[str]]:
        return self.columns, self.unread_columns, self.unread
