"""JSON Lines, read line by line so that every fault is named by its line; a JSON array of objects is read too.

Strict about the JSON (what only some parsers accept is a fault), lenient about the container: a byte order mark,
CR LF line ends and blank lines pass.
"""

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gora.data.file_bytes import UTF8_MARK, read_content
from gora.data.messages import described
from gora.data.rows import Rows, Unusable
from gora.errors import InputError

_ARRAY = re.compile(rb"(?:%s)?\s*\[" % UTF8_MARK)
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: Path, name: str, max_rows: int | None) -> Rows:
    """Read a JSON Lines file, or a JSON document that is an array of objects.

    Args:
        path: the file.
        name: what messages call it.
        max_rows: read this many rows only, good or bad; None reads all.

    Raises:
        InputError: the file as a whole cannot be read, or an array breaks off.
    """
    content = read_content(path, name)
    if _ARRAY.match(content) and not _lines_of_lists(content):
        return _read_array(_whole_text(content, name), name, max_rows)
    rows = _read_lines(content, name, max_rows)
    if rows.bad and not rows.rows:
        _refuse_single_object(content, name)
    return rows


def _read_lines(content: bytes, name: str, max_rows: int | None) -> Rows:
    rows = Rows(name)
    json_of = _StrictJson()
    offset = 0
    for number, line in enumerate(io.BytesIO(content), start=1):
        if rows.read == max_rows:
            break
        if line.strip().removeprefix(UTF8_MARK):
            place = f"{name}:{number}"
            try:
                rows.keep(json_of.line(_line_text(line, offset)), place)
            except Unusable as fault:
                rows.refuse(str(fault), place)
        offset += len(line)
    return rows


def _read_array(text: str, name: str, max_rows: int | None) -> Rows:
    rows = Rows(name)
    json_of = _StrictJson()
    position = _after_space(text, text.index("[") + 1)
    line, counted = 1, 0
    # An empty array has nothing between its brackets; everywhere else a value must follow `[` or a comma.
    mark = "]" if text[position : position + 1] == "]" else ","
    while mark == "," and rows.read != max_rows:
        line, counted = line + text.count("\n", counted, position), position
        place = f"{name}:{line} (row {rows.read + 1})"
        value, position = _array_item(json_of, text, position, name)
        try:
            rows.keep(json_of.checked(value), place)
        except Unusable as fault:
            rows.refuse(str(fault), place)
        position = _after_space(text, position)
        mark = text[position : position + 1]
        position = _after_space(text, position + 1)
        if mark not in (",", "]"):
            raise InputError(
                f"{_place(text, counted, name)}: the JSON array breaks off after the row that starts here."
            )
        if mark == "]" and position < len(text):
            raise InputError(f"{_place(text, position, name)}: text follows after the end of the JSON array.")
    return rows


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


def _lines_of_lists(content: bytes) -> bool:
    """Whether a file that starts with `[` is JSON Lines all the same: its first line is complete, and more follow."""
    lines = (line for line in io.BytesIO(content.removeprefix(UTF8_MARK)) if line.strip())
    first, second = next(lines, b""), next(lines, None)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return second is not None


def _refuse_single_object(content: bytes, name: str) -> None:
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and b"\n" in content.strip():
        raise InputError(
            f"{name} is one JSON object spread over several lines, with the keys {', '.join(map(repr, value))}. "
            "Rows must be one object per line, or an array of objects."
        )


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _place(text: str, position: int, name: str) -> str:
    return f"{name}:{1 + text.count(chr(10), 0, position)}"
