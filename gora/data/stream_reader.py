"""One source of a stream: read over and over, from any place in it, an example at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gora.data.checking import Checker, check_columns
from gora.data.encode import Encoded
from gora.data.facts import NAMED_AT_MOST, Facts, FileFacts
from gora.data.sources import Source
from gora.errors import InputError

_HOPELESS = 10_000
"""Bad rows in front of the first good one after which nobody reads on."""

Encode = Callable[[Iterable[Any]], Iterator[Encoded | None]]


class Position(NamedTuple):
    """A place between two examples of a source.

    Attributes:
        passes: how often the whole source comes before it.
        row: rows of this pass that come before it, good or bad.
        taken: examples of the row at it that come before it.
    """

    passes: int = 0
    row: int = 0
    taken: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamExample:
    """An example and its row.

    Attributes:
        encoded: the example.
        row: the number of its row in its pass.
        place: where it came from: `train.jsonl:17`.
    """

    encoded: Encoded
    row: int
    place: str


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What stands at a position: an example, one that was dropped, or a bad row."""

    at: Position
    place: str = ""
    encoded: Encoded | None = None
    bad: str | None = None


@dataclass(frozen=True)
class Taken:
    """Examples that follow each other, and what was found in their rows."""

    examples: list[StreamExample]
    facts: Facts


@dataclass
class StreamReader:
    """Reads a source from a position on; the same position gives the same examples.

    What comes before the position is read past and neither parsed nor tokenised.

    Args:
        source: the source.
        check: brings rows into their format.
        encode: makes examples.
        position: where to begin, and afterwards where it has come to.
    """

    source: Source
    check: Checker
    encode: Encode
    position: Position
    seen: Facts = field(init=False)
    """What was found in all that was read."""

    def __post_init__(self) -> None:
        self.seen = Facts(name=self.source.name)
        self._ahead: deque[_Found] = deque()
        self._parts = self._from(self.position)
        # Where the part that was read last ends, and the pass and row at which an example came last.
        self._end = self._fruitful = self.position

    def take(self, count: int) -> Taken:
        """The next examples.

        Raises:
            InputError: a whole pass over the source gives none, or a file of it cannot be read.
        """
        facts = Facts(name=self.source.name, files=[FileFacts(name=self.source.name)])
        taken: list[StreamExample] = []
        rows: set[tuple[int, ...]] = set()
        while len(taken) < count:
            if not self._ahead:
                self._read_on()
                continue
            found = self._ahead.popleft()
            if found.bad is not None:
                facts.files[0].bad += 1
                facts.named = [*facts.named, found.bad][:NAMED_AT_MOST]
                if not taken and facts.bad == _HOPELESS:
                    raise InputError(f"{self.source.name}: none of {facts.bad:,} rows can be used.", facts.named)
                continue
            rows.add(found.at[:2])
            if found.encoded is None:
                facts.dropped += 1
                continue
            self._fruitful = found.at
            taken.append(StreamExample(encoded=found.encoded, row=found.at.row, place=found.place))
        self.position = self._ahead[0].at if self._ahead else self._end
        facts.files[0].rows, facts.files[0].parsed = len(rows) + facts.bad, len(rows)
        facts.more = len(taken) + facts.dropped - len(rows)
        return Taken(taken, facts)

    def _read_on(self) -> None:
        """Read the next part."""
        self._ahead += next(self._parts)
        check_columns(self.seen, self.check.fmt)
        if self._end.passes > self._fruitful.passes + 1 and not self._ahead:
            raise InputError(
                f"{self.source.name} leaves no token to train on: no row of it can be used, is short enough, and has "
                "something that is trained."
            )

    def _from(self, start: Position) -> Iterator[list[_Found]]:
        """What is found part by part, over and over."""
        passes, skipped = start.passes, start.row
        while True:
            first = 0
            for part in self.source.parts():
                end = first + part.read
                if end > skipped:
                    found = self._found(part.parsed(), passes, first)
                    self._end = Position(passes, end)
                    yield [each for each in found if each.at >= start]
                first = end
            if not first:
                raise InputError(f"{self.source.name} holds no rows.")
            passes, skipped = passes + 1, 0
            self._end = Position(passes)
            yield []

    def _found(self, rows: Any, passes: int, first: int) -> list[_Found]:
        checked = self.check(rows)
        self.seen.add(checked.facts)
        found = [_Found(at=Position(passes, first + bad.position), bad=str(bad)) for bad in checked.bad]
        encoded = self.encode(example.content for example in checked.examples)
        before: tuple[int, int] = (-1, 0)
        for example, made in zip(checked.examples, encoded, strict=True):
            number = before[1] + 1 if before[0] == example.row else 0
            before = example.row, number
            at = Position(passes, first + example.row, number)
            found.append(_Found(at=at, place=example.place, encoded=made))
        return sorted(found, key=lambda each: each.at)
