"""A stream of examples in blocks: one is read, shuffled as a whole, and deleted when later ones are used.

Each block has a folder in the row cache, like other kept rows. Of the processes of a host, whichever needs it
first makes it, and the others map it. What a block holds follows from its place in the stream alone, so that every
process and every resumed run has the same rows in the same step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gora.data.checking import Checker
from gora.data.examples import Examples
from gora.data.facts import Facts
from gora.data.kept import EXAMPLES, naming_a_way_out, whole_note, write_note
from gora.data.parts import PART_ROWS
from gora.data.sources import Source
from gora.data.store import Store, Writer, batch_of
from gora.data.stream_reader import Encode, Position, StreamReader, Taken
from gora.errors import GoraError, InputError
from gora.files import delete, publish
from gora.runtime.row_cache import mark_used, writing

_LARGE_PRIME = 1_000_003
_KEPT = 2
"""Blocks that stay when the one after them is used, besides the first one, with which every command begins."""


@dataclass(frozen=True, kw_only=True)
class StreamedSource:
    """A source of a stream.

    Attributes:
        source: where rows are read.
        check: brings them into their format.
        per_block: how many of a block's examples are of it.
    """

    source: Source
    check: Checker
    per_block: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block.

    Attributes:
        number: counted from 0.
        examples: shuffled.
        facts: what was found in the rows of each source.
        notices: what the rows say that nobody reads, of each source.
        start: where it begins in each source.
        end: where the next one begins.
        fingerprint: SHA-256 over its examples as they were read.
    """

    number: int
    examples: Examples
    facts: list[Facts]
    notices: list[str]
    start: tuple[Position, ...]
    end: tuple[Position, ...]
    fingerprint: str


class Stream:
    """Blocks in their order.

    Args:
        sources: what is read.
        encode: makes examples.
        entry: from the number of a block to its folder.
        seed: of the order in a block.
        shape: what `Examples` is to know.
        answer: what is to be said of a block when it is first used; raises where its rows cannot be used.

    Attributes:
        entry: as above.
    """

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        encode: Encode,
        *,
        entry: Callable[[int], Path],
        seed: int,
        shape: dict[str, Any],
        answer: Callable[[Block], list[str]],
    ) -> None:
        self._sources, self._encode, self.entry, self._seed = tuple(sources), encode, entry, seed
        self._shape, self._answer = shape, answer
        self._starts: dict[int, tuple[Position, ...]] = {0: tuple(Position() for _ in self._sources)}
        self._blocks: dict[int, Block] = {}
        self._readers: list[StreamReader] = []
        self._ahead: threading.Thread | None = None
        self._remarks: list[str] = []

    @property
    def block_size(self) -> int:
        """Examples of a block."""
        return sum(source.per_block for source in self._sources)

    def block(self, number: int) -> Block:
        """A block; it is made where no process of this host has done so.

        Raises:
            InputError: rows cannot be used, or not be read or kept.
            GoraError: a source cannot be read on.
        """
        if number not in self._blocks:
            self._join()
            block = self._opened(number, whole_note(self.entry(number)) or self._made_in_turn(number))
            self._remarks += self._answer(block)
            self._blocks = {old: kept for old, kept in self._blocks.items() if old == number - 1} | {number: block}
            if number > _KEPT:
                delete(self.entry(number - _KEPT))
        return self._blocks[number]

    def take_remarks(self) -> list[str]:
        """What is to be said of the blocks that were used since this was asked last."""
        found, self._remarks = self._remarks, []
        return found

    def make_ahead(self, number: int) -> None:
        """Begin to make a block that will be needed, in a thread; what goes wrong shows when it is needed."""
        if number in self._starts and number not in self._blocks and self._ahead is None:
            self._ahead = threading.Thread(target=self._quietly, args=(number,), daemon=True)
            self._ahead.start()

    def state(self, number: int) -> dict[str, Any]:
        """What `resume` needs to begin with a block: JSON."""
        note = whole_note(self.entry(number))
        start = note["start"] if note else self.block(number).start
        return {"block": number, "start": [list(position) for position in start]}

    def resume(self, state: dict[str, Any]) -> None:
        """Begin with a block of an earlier run; raises KeyError, TypeError and ValueError where it is not one."""
        start = _positions(state["start"])
        if len(start) != len(self._sources):
            raise ValueError(f"{len(start)} sources")
        self._starts[int(state["block"])] = start

    def _join(self) -> None:
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None

    def _quietly(self, number: int) -> None:
        with suppress(GoraError, OSError):
            self._make(number)

    def _made_in_turn(self, number: int) -> dict[str, Any]:
        """Make a block, and those before it back to one whose start is known."""
        for each in range(max(known for known in self._starts if known <= number), number + 1):
            note = self._make(each)
            self._starts[each + 1] = _positions(note["end"])
        return note

    def _opened(self, number: int, note: dict[str, Any]) -> Block:
        entry = self.entry(number)
        mark_used(entry)
        start, end = _positions(note["start"]), _positions(note["end"])
        self._starts |= {number: start, number + 1: end}
        store = Store.mapped(entry / EXAMPLES)
        seed = (self._seed * _LARGE_PRIME + number) % 2**63
        order: np.ndarray = torch.randperm(len(store), generator=torch.Generator().manual_seed(seed)).numpy()
        return Block(
            number=number,
            examples=Examples(store, indices=order, **self._shape),
            facts=[Facts.from_json(each) for each in note["sources"]],
            notices=note["notices"],
            start=start,
            end=end,
            fingerprint=note["fingerprint"],
        )

    def _make(self, number: int) -> dict[str, Any]:
        """Make a block unless it is there; what it says of itself."""
        entry = self.entry(number)
        if (note := whole_note(entry)) is not None:
            return note
        with writing(entry), naming_a_way_out():
            if (note := whole_note(entry)) is not None:  # another process has been faster
                return note
            with publish(entry) as aside:
                aside.mkdir()
                self._write(aside, self._starts[number])
        note = whole_note(entry)
        if note is None:
            raise GoraError(f"{entry} has changed while it was read. Start the command again with --resume.")
        return note

    def _write(self, folder: Path, start: tuple[Position, ...]) -> None:
        # One that was broken off is not read on.
        readers, self._readers = self._readers, []
        if [reader.position for reader in readers] != list(start):
            readers = [
                StreamReader(each.source, each.check, self._encode, position)
                for each, position in zip(self._sources, start, strict=True)
            ]
        found: list[Facts] = []
        with open(folder / EXAMPLES, "wb") as file:
            writer = Writer(file)
            for reader, source in zip(readers, self._sources, strict=True):
                taken = reader.take(source.per_block)
                found.append(taken.facts)
                _add(writer, taken)
            fingerprint, checksum = writer.close()
        whole = Facts(name=", ".join(source.source.name for source in self._sources) + " (part of a stream)")
        for facts in found:
            whole.add(facts)
        write_note(
            folder,
            whole,
            examples=writer.examples,
            fingerprint=fingerprint,
            checksum=checksum,
            sources=[facts.as_json() for facts in found],
            notices=[notice for reader in readers if (notice := reader.seen.notice())],
            start=[list(position) for position in start],
            end=[list(reader.position) for reader in readers],
        )
        self._readers = readers


def _add(writer: Writer, taken: Taken) -> None:
    for first in range(0, len(taken.examples), PART_ROWS):
        part = taken.examples[first : first + PART_ROWS]
        rows, places = [each.row for each in part], [each.place for each in part]
        writer.add(batch_of([each.encoded for each in part], rows, places))


def _positions(values: Sequence[Sequence[int]]) -> tuple[Position, ...]:
    return tuple(Position(*map(int, each)) for each in values)


def shares_of(size: int, weights: Sequence[float]) -> list[int]:
    """A block's examples dealt out to its sources by weight.

    Raises:
        InputError: a source would have none.
    """
    borders = [round(size * sum(weights[:number]) / sum(weights)) for number in range(len(weights) + 1)]
    shares = [after - before for before, after in pairwise(borders)]
    if not all(shares):
        number = shares.index(0)
        raise InputError(
            f"data.train.{number}.weight ({weights[number]:g}) is less than one row of the {size:,} that are shuffled "
            "together. Raise it, or data.shuffle_buffer."
        )
    return shares
