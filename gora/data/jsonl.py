"""JSON Lines, read line by line so that every fault is named by its line; a JSON array of objects is read too.

Strict about the JSON (what only some parsers accept is a fault), lenient about the container: a byte order mark,
CR LF line ends and blank lines pass.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.data.file_bytes import UTF8_MARK, open_content, read_content
from gora.data.messages import described
from gora.data.parts import PART_BYTES, PART_ROWS, Part
from gora.data.rows import BadRow, Rows, Unusable
from gora.errors import InputError

_ARRAY = re.compile(rb"(?:%s)?\s*\[" % UTF8_MARK)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """Neighbouring lines of a JSON Lines file.

    Attributes:
        name: what messages call the file.
        number: of the first line, from 1.
        offset: bytes of the file that come before it.
        lines: the lines, with their ends.
        read: how many of them are not blank.
    """

    name: str
    number: int
    offset: int
    lines: bytes
    read: int

    def parsed(self) -> Rows:
        """One row for each line that is not blank."""
        rows = Rows(self.name)
        json_of = _StrictJson()
        offset = self.offset
        for number, line in enumerate(io.BytesIO(self.lines), start=self.number):
            if not _is_blank(line):
                place = f"{self.name}:{number}"
                try:
                    rows.keep(json_of.line(_line_text(line, offset)), place)
                except Unusable as fault:
                    rows.refuse(str(fault), place)
            offset += len(line)
        return rows


def json_parts(path: Path, name: str, max_rows: int | None) -> Iterator[Part]:
    """Read a JSON Lines file, or a JSON document that is an array of objects.

    Args:
        path: the file.
        name: what messages call it.
        max_rows: read this many rows only, good or bad; None reads all.

    Raises:
        InputError: the file as a whole cannot be read, or an array breaks off.
    """
    if _is_array(path, name):
        yield from _array_parts(_whole_text(read_content(path, name), name), name, max_rows)
        return
    with open_content(path, name) as stream:
        yield from _line_parts(stream, name, max_rows)


def read_json(path: Path, name: str, max_rows: int | None = None) -> Rows:
    """The rows of a small file, in memory; see `json_parts`."""
    rows = Rows(name)
    for part in json_parts(path, name, max_rows):
        rows.extend(part.parsed())
    if rows.bad and not rows.rows:
        refuse_single_object(path, name)
    return rows


def refuse_single_object(path: Path, name: str) -> None:
    """Explain a file of which no line is a row: it may be one object.

    Raises:
        InputError: it is.
    """
    content = read_content(path, name)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and b"\n" in content.strip():
        raise InputError(
            f"{name} is one JSON object spread over several lines, with the keys {', '.join(map(repr, value))}. "
            "Rows must be one object per line, or an array of objects."
        )


def _line_parts(stream: io.BufferedReader, name: str, max_rows: int | None) -> Iterator[JsonLines]:
    number, offset, rows, seen = 1, 0, 0, 0
    lines: list[bytes] = []
    size = 0

    def part() -> JsonLines:
        return JsonLines(name=name, number=number, offset=offset, lines=b"".join(lines), read=rows)

    for line in stream:
        if max_rows is not None and seen == max_rows:
            break
        lines.append(line)
        size += len(line)
        counts = not _is_blank(line)
        rows, seen = rows + counts, seen + counts
        if rows == PART_ROWS or size >= PART_BYTES:
            yield part()
            number, offset, rows, size = number + len(lines), offset + size, 0, 0
            lines.clear()
    if lines:
        yield part()


def _is_blank(line: bytes) -> bool:
    return not line.strip().removeprefix(UTF8_MARK)


def _array_parts(text: str, name: str, max_rows: int | None) -> Iterator[Rows]:
    part = Rows(name)
    for row in _array_rows(text, name, max_rows):
        if isinstance(row, BadRow):
            part.refuse(row.reason, row.where)
        else:
            part.keep(*row)
        if part.read == PART_ROWS:
            yield part
            part = Rows(name)
    if part.read:
        yield part


def _array_rows(text: str, name: str, max_rows: int | None) -> Iterator[tuple[dict[str, Any], str] | BadRow]:
    """Every row of an array with its place, bad ones included."""
    read = 0
    json_of = _StrictJson()
    position = _after_space(text, text.index("[") + 1)
    line, counted = 1, 0
    # An empty array has nothing between its brackets; everywhere else a value must follow `[` or a comma.
    mark = "]" if text[position : position + 1] == "]" else ","
    while mark == "," and read != max_rows:
        line, counted = line + text.count("\n", counted, position), position
        place = f"{name}:{line} (row {read + 1})"
        value, position = _array_item(json_of, text, position, name)
        try:
            row: tuple[dict[str, Any], str] | BadRow = (json_of.checked(value), place)
        except Unusable as fault:
            row = BadRow(place, str(fault), read)
        read += 1
        position = _after_space(text, position)
        mark = text[position : position + 1]
        position = _after_space(text, position + 1)
        if mark not in (",", "]"):
            raise InputError(
                f"{_place(text, counted, name)}: the JSON array breaks off after the row that starts here."
            )
        if mark == "]" and position < len(text):
            raise InputError(f"{_place(text, position, name)}: text follows after the end of the JSON array.")
        yield row


def _array_item(json_of: "_StrictJson", text: str, position: int, name: str) -> tuple[Any, int]:
    try:
        return json_of.value_at(text, position)
    except Unusable as fault:
        # Without the end of a broken item nothing tells where the next one starts, so no row after it can be trusted.
        reason = f"the JSON array cannot be read past this row: {fault}."
        raise InputError(f"{_place(text, position, name)}: {reason}") from fault


class _StrictJson:
    """Python's JSON parser, less what it lets pass beyond the standard: NaN, Infinity and repeated keys."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def line(self, text: str) -> dict[str, Any]:
        """The object that is all there is in `text`; raises Unusable."""
        start = _after_space(text, 0)
        value, end = self.value_at(text, start)
        if _after_space(text, end) < len(text):
            raise Unusable(f"not JSON: text follows after the value's end at column {end + 1}")
        return self.checked(value)

    def value_at(self, text: str, start: int) -> tuple[Any, int]:
        """The JSON value that starts at `start`, and where it ends; raises Unusable."""
        self._faults.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise Unusable(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
        except RecursionError as error:
            raise Unusable("not usable JSON: nested too deeply") from error
        except ValueError as error:  # a number of thousands of digits
            raise Unusable(f"not usable JSON: {error}") from error

    def checked(self, value: Any) -> dict[str, Any]:
        """The value just read, if it is an object without a fault; raises Unusable."""
        if self._faults:
            raise Unusable(self._faults[0])
        if not isinstance(value, dict):
            raise Unusable(f"not an object but {described(value)}")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated = next(key for key, count in counts.items() if count > 1)
            self._faults.append(f"the key {repeated!r} stands more than once in one object")
        return row

    def _constant(self, word: str) -> None:
        self._faults.append(f"not JSON: the bare word {word}")


def _line_text(line: bytes, offset: int) -> str:
    skipped = len(UTF8_MARK) if offset == 0 and line.startswith(UTF8_MARK) else 0
    try:
        return line[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = skipped + error.start
        raise Unusable(
            f"not UTF-8: byte {line[at]:#04x} at byte {at} of the line, {offset + at} of the file"
        ) from error


def _whole_text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise InputError(f"{name}:{line}: not UTF-8: byte {error.object[error.start]:#04x}.") from error


def _is_array(path: Path, name: str) -> bool:
    """Whether a file is one JSON array; a first line that is complete, with others after it, is JSON Lines."""
    with open_content(path, name) as stream:
        lines = (line for line in stream if not _is_blank(line))
        first = next(lines, b"")
        if not _ARRAY.match(first):
            return False
        try:
            json.loads(first.removeprefix(UTF8_MARK))
        except (ValueError, RecursionError):
            return True
        return next(lines, None) is None


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _place(text: str, position: int, name: str) -> str:
    return f"{name}:{1 + text.count(chr(10), 0, position)}"
