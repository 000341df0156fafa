"""Rows are checked and brought into their format, part by part, before any of them is tokenised.

What a part becomes is laid down in a file, where the tokenizer finds it: rows need not fit in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from gora.data.classification import LabelledText
from gora.data.columns import is_empty
from gora.data.facts import NAMED_AT_MOST, Facts, FileFacts
from gora.data.formats import Format
from gora.data.labelled_images import LabelledImage
from gora.data.messages import did_you_mean, quoted
from gora.data.parts import Part
from gora.data.reading import NOT_TEXT
from gora.data.rows import BadRow, Rows, Untrained, Unusable
from gora.data.segments import Segment
from gora.data.sources import Source
from gora.errors import InputError
from gora.runtime.workers import in_order


class Shortens(Protocol):
    """What cuts texts that are far too long; see `Encoder`."""

    def shortened(self, row: Any) -> Any:
        """The row without what cannot be kept of it."""


@dataclass(frozen=True, kw_only=True)
class CheckedPart:
    """A part whose examples lie in a file.

    Attributes:
        file: the file; None where the part has no examples.
        first: rows of the source that come before the part.
        examples: how many there are.
    """

    file: Path
    first: int
    examples: int


@dataclass(frozen=True)
class FormattedExample:
    """One example, not yet tokenised.

    Attributes:
        row: the number of its row in its part.
        place: where it came from: `train.jsonl:17`, `train.jsonl:17 (message 4)`.
        content: segments, a labelled text, or a labelled image.
    """

    row: int
    place: str
    content: Any


def check(
    source: Source, fmt: Format, ignore: list[str], shortens: Shortens, folder: Path, workers: int
) -> tuple[Facts, list[CheckedPart]]:
    """Read and format all rows of a source.

    Args:
        source: the source.
        fmt: the format.
        ignore: columns that are not read on purpose.
        shortens: cuts texts.
        folder: takes the files; it is made.
        workers: processes.

    Raises:
        InputError: a file cannot be read as a whole, there are no rows, or a column that the format reads is in no row
            at all, or one that it must not pass over is not read.
    """
    refuse_ignored_columns(fmt, ignore)
    folder.mkdir()
    facts, parts = Facts(name=source.name), []
    work = _Work(Checker(fmt, ignore, shortens))
    tasks = ((part, folder / f"{number}.json") for number, part in enumerate(source.parts()))
    for number, (found, examples) in enumerate(in_order(work, tasks, workers)):
        if examples:
            parts.append(CheckedPart(file=folder / f"{number}.json", first=facts.rows, examples=examples))
        facts.add(found)
    if not facts.rows:
        raise InputError(f"{source.name} holds no rows.")
    for file in facts.files:
        if not file.parsed:
            source.explain_no_row(file.name)
    check_columns(facts, fmt)
    return facts, parts


def read_checked(part: CheckedPart) -> Iterator[FormattedExample]:
    """The examples of a part."""
    for row, place, content in json.loads(part.file.read_bytes()):
        if isinstance(content, dict):
            kind = LabelledImage.from_json if "digest" in content else _labelled_text
            yield FormattedExample(row, place, kind(content))
        else:
            segments = [Segment(text, trained, _spans(spans)) for text, trained, spans in content]
            yield FormattedExample(row, place, segments)


@dataclass(frozen=True, kw_only=True)
class CheckedRows:
    """What some rows have become.

    Attributes:
        facts: what was found in them.
        examples: in the order of the rows.
        bad: rows that cannot be used, in their order.
    """

    facts: Facts
    examples: list[FormattedExample]
    bad: list[BadRow]


class Checker:
    """Brings rows into their format.

    Args:
        fmt: the format.
        ignore: columns that are not read on purpose.
        shortens: cuts texts.

    Attributes:
        fmt: the format.
    """

    def __init__(self, fmt: Format, ignore: Sequence[str], shortens: Shortens) -> None:
        self.fmt, self._ignore, self._shortens = fmt, frozenset(ignore), shortens
        self._passed_over = set(fmt.columns) | fmt.optional | self._ignore

    def __call__(self, rows: Rows) -> CheckedRows:
        """Check some rows of one file."""
        facts = Facts(name=rows.name, files=[FileFacts(name=rows.name, rows=rows.read, parsed=len(rows.rows))])
        examples: list[FormattedExample] = []
        bad = list(rows.bad)
        for index, (row, position) in enumerate(zip(rows.rows, rows.positions(), strict=True)):
            facts.columns.update(row.keys())
            facts.unread_columns.update(
                name for name, value in row.items() if name not in self._passed_over and not is_empty(value)
            )
            try:
                reading = self.fmt.read({name: row[name] for name in row if name not in self._ignore})
            except Untrained:
                facts.untrained += 1
                continue
            except Unusable as fault:
                bad.append(rows.unusable(index, str(fault)))
                continue
            facts.unread.update(reading.unread)
            facts.more += len(reading.examples) - 1
            for number, example in enumerate(reading.examples):
                name = f" ({reading.names[number]})" if reading.names else ""
                facts.answering += _has_several_answers(example)
                content = self._shortens.shortened(example)
                examples.append(FormattedExample(position, rows.where(index) + name, content))
        bad.sort(key=lambda row: row.position)
        facts.files[0].bad = len(bad)
        facts.named = [str(row) for row in bad[:NAMED_AT_MOST]]
        return CheckedRows(facts=facts, examples=examples, bad=bad)


class _Work:
    """Checks one part, in whichever process, and lays its examples down in a file."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def __call__(self, task: tuple[Part, Path]) -> tuple[Facts, int]:
        part, file = task
        checked = self._checker(part.parsed())
        if checked.examples:
            lines = [(example.row, example.place, _as_json(example.content)) for example in checked.examples]
            file.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")
        return checked.facts, len(checked.examples)


def _has_several_answers(example: Any) -> bool:
    return not isinstance(example, LabelledText | LabelledImage) and sum(segment.supervised for segment in example) > 1


def _as_json(example: Any) -> Any:
    if isinstance(example, LabelledImage):
        return example.as_json()
    if isinstance(example, LabelledText):
        return asdict(example)
    return [(segment.text, segment.supervised, segment.spans) for segment in example]


def _labelled_text(content: dict[str, Any]) -> LabelledText:
    return LabelledText(**content)


def _spans(spans: list[list[int]] | None) -> tuple[tuple[int, int], ...] | None:
    return None if spans is None else tuple((first, last) for first, last in spans)


def refuse_ignored_columns(fmt: Format, ignore: Sequence[str]) -> None:
    """Refuse to ignore what the format reads; raises InputError."""
    for column, key in fmt.columns.items():
        if column in ignore:
            raise InputError(f"data.ignore names the column {column!r}, which {key} asks for. Keep one of the two.")


def check_columns(facts: Facts, fmt: Format) -> None:
    """Refuse rows of which none has a column that the format reads, and columns that must not go unread.

    Raises:
        InputError: naming the columns.
    """
    seen = list(facts.columns)
    problems = [
        f"{key} asks for the column {column!r}{did_you_mean(column, seen)}"
        for column, key in fmt.columns.items()
        if column not in facts.columns
    ]
    parsed = sum(file.parsed for file in facts.files)
    if parsed and problems:
        raise InputError(
            f"No row of {facts.name} has what the recipe asks for. The columns are {quoted(seen)}.", problems
        )
    problems = [
        f"column {column!r} has a value in {facts.unread_columns[column]:,} of {parsed:,} rows: {advice}"
        for column, advice in (NOT_TEXT | fmt.refused).items()
        if facts.unread_columns[column]
    ]
    if problems:
        raise InputError(f"{facts.name} holds what {fmt.title} does not read but should.", problems)
