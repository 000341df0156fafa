"""Tokenised rows are made once, and kept in a folder that every later stage and process maps into its memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gora.data.checking import CheckedPart, Shortens, check, read_checked
from gora.data.encode import Encoded
from gora.data.facts import Facts
from gora.data.formats import Format
from gora.data.sources import Source
from gora.data.store import SCHEMA, Writer, batch_of, file_checksum
from gora.disk import FULL
from gora.errors import GoraError
from gora.files import publish, write_json
from gora.recipe.schema import DataSection
from gora.runtime.console import output
from gora.runtime.progress import Meter
from gora.runtime.row_cache import ABOUT, mark_used, read_note, writing
from gora.runtime.workers import in_order

EXAMPLES = "examples.arrow"
"""The file of an entry."""
_CHECKED = "checked"
_BAR_FROM = 4
"""Parts from which on progress is shown."""

Encode = Callable[[Iterable[Any]], Iterator[Encoded | None]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Rows that a run needs.

    Attributes:
        entry: the folder of their key.
        source: where they are read.
        fmt: their format.
        data: the settings that hold for them.
    """

    entry: Path
    source: Source
    fmt: Format
    data: DataSection


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Rows that are kept.

    Attributes:
        file: their examples, for `Store.mapped`.
        facts: what was found in the rows.
        fingerprint: SHA-256 over the examples, see `Examples.fingerprint`.
    """

    file: Path
    facts: Facts
    fingerprint: str


def keep(
    wanted: Sequence[Wanted],
    encode: Encode,
    shortens: Shortens,
    *,
    workers: int,
    answer: Callable[[list[Facts]], None],
    nothing_left: Callable[[Wanted, Facts], Exception],
    schema: pa.Schema = SCHEMA,
) -> None:
    """Make the rows that are not kept yet, or whose files are damaged. All are checked before any are tokenised.

    Args:
        wanted: the rows.
        encode: makes examples.
        shortens: cuts texts that are far too long.
        workers: processes.
        answer: told what was found in the rows, in the order of `wanted`; raises where they cannot be used.
        nothing_left: the error for rows of which no example is left.
        schema: of the examples.

    Raises:
        InputError: rows cannot be used, or not kept.
        GoraError: they cannot be written.
    """
    missing = {each.entry: each for each in wanted if whole_note(each.entry) is None}
    with ExitStack() as stack:
        # In one order everywhere, or two processes would wait for each other.
        for entry in sorted(missing):
            stack.enter_context(writing(entry))
            if whole_note(entry) is not None:  # another process has been faster
                del missing[entry]
        stack.enter_context(naming_a_way_out())
        asides = {entry: stack.enter_context(publish(entry)) for entry in missing}
        checked: dict[Path, tuple[Facts, list[CheckedPart]]] = {}
        for entry, each in missing.items():
            asides[entry].mkdir()
            with output.terminal.status(f"checking the rows of {each.source.name}"):
                checked[entry] = check(
                    each.source, each.fmt, each.data.ignore, shortens, asides[entry] / _CHECKED, workers
                )
        answer([checked[each.entry][0] if each.entry in checked else _facts(each.entry) for each in wanted])
        for entry, (facts, parts) in checked.items():
            _write(asides[entry], facts, parts, _Work(encode, schema), workers)
            if not facts.examples - facts.dropped:
                raise nothing_left(missing[entry], facts)


def open_kept(entry: Path) -> Kept:
    """Rows that `keep` has made."""
    note = read_note(entry) or {}
    mark_used(entry)
    return Kept(file=entry / EXAMPLES, facts=Facts.from_json(note["facts"]), fingerprint=note["fingerprint"])


@contextmanager
def naming_a_way_out() -> Iterator[None]:
    """Say what to do where the block finds no room; raises GoraError."""
    try:
        yield
    except GoraError as error:
        if error.code != FULL:
            raise
        raise GoraError(f"{error} {_ADVICE}", code=FULL) from error
    except OSError as error:
        raise GoraError(f"Tokenized rows cannot be written: {error.strerror or error}. {_ADVICE}") from error


_ADVICE = "`gora cache --prune` deletes tokenized rows of earlier commands; data.cache names another folder."


def _facts(entry: Path) -> Facts:
    return Facts.from_json((read_note(entry) or {})["facts"])


def whole_note(entry: Path) -> dict[str, Any] | None:
    """What an entry says of itself; None where it is missing or damaged."""
    note = read_note(entry)
    if note is None or note.get("note") != _digest(note):
        return None
    try:
        return note if file_checksum(entry / EXAMPLES) == note["checksum"] else None
    except OSError:
        return None


def _digest(note: dict[str, Any]) -> str:
    content = {name: value for name, value in note.items() if name != "note"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, facts: Facts, parts: list[CheckedPart], work: _Work, workers: int) -> None:
    """Tokenise checked rows into a folder, and delete what they were laid down in."""
    total = sum(part.examples for part in parts)
    title = f"{'tokenizing' if work.schema is SCHEMA else 'keeping'} {facts.name}"
    with open(folder / EXAMPLES, "wb") as file, Meter(output, title, total, quiet=len(parts) < _BAR_FROM) as meter:
        writer, done = Writer(file, work.schema), 0
        for part, batch in zip(parts, in_order(work, parts, workers), strict=True):
            writer.add(pa.ipc.read_record_batch(batch, work.schema))
            part.file.unlink()
            done += part.examples
            meter.advance(steps=part.examples, facts=f"{done / max(meter.seconds, 1e-9):,.0f} rows/s")
        fingerprint, checksum = writer.close()
    (folder / _CHECKED).rmdir()
    facts.dropped = total - writer.examples
    write_note(folder, facts, examples=writer.examples, fingerprint=fingerprint, checksum=checksum)


def write_note(folder: Path, facts: Facts, **named: Any) -> None:
    """Write what an entry says of itself.

    Args:
        folder: the entry.
        facts: what was found in its rows.
        named: `examples`, how many it holds, their `fingerprint`, the `checksum` of its file, and whatever else.
    """
    note = {"facts": facts.as_json(), **named}
    write_json(folder / ABOUT, {**note, "note": _digest(note)})


class _Work:
    """Tokenises one part, in whichever process: a record batch as bytes."""

    def __init__(self, encode: Encode, schema: pa.Schema) -> None:
        self._encode, self.schema = encode, schema

    def __call__(self, part: CheckedPart) -> bytes:
        examples = list(read_checked(part))
        encoded = self._encode(example.content for example in examples)
        made = [(one, example) for one, example in zip(encoded, examples, strict=True) if one is not None]
        rows = [part.first + example.row for _, example in made]
        batch = batch_of([one for one, _ in made], rows, [example.place for _, example in made], self.schema)
        return bytes(batch.serialize())
