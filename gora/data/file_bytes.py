"""The bytes of a local file, unpacked where they are a gzip stream."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from gora.errors import InputError

UNPACKED_LIMIT = 16 * 2**30
UTF8_MARK = b"\xef\xbb\xbf"

_GZIP = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs.github.com/spec/"
_CHUNK = 2**20


@contextmanager
def open_content(path: Path, name: str) -> Iterator[io.BufferedReader]:
    """Open a file for reading; a gzip stream is told by its first bytes, whatever the file is called, and unpacked.

    Raises:
        InputError: the file cannot be read, is empty, is a damaged gzip stream, unpacks to more than
            `UNPACKED_LIMIT` bytes, is UTF-16, or a pointer of Git LFS.
    """
    try:
        with open(path, "rb") as packed:
            stream = packed
            if packed.peek(len(_GZIP)).startswith(_GZIP):
                stream = io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=packed), name), _CHUNK)
            _refuse_other_content(stream.peek(len(_POINTER)), name)
            yield stream
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from error


def read_content(path: Path, name: str) -> bytes:
    """Read a file whole; raises as `open_content` does."""
    with open_content(path, name) as stream:
        return stream.read()


def _refuse_other_content(start: bytes, name: str) -> None:
    if not start:
        raise InputError(f"{name} is empty.")
    if start.startswith(_POINTER):
        raise InputError(f"{name} is a pointer of Git LFS and not its content. Run `git lfs pull` in its folder.")
    if start.startswith(_UTF16_MARKS):
        raise InputError(f"{name} is UTF-16 text. Save it as UTF-8.")


class _Unpacked(io.RawIOBase):
    """A gzip stream that ends in an error where it is damaged, or holds more than memory should."""

    def __init__(self, stream: gzip.GzipFile, name: str) -> None:
        self._stream, self._name, self._read = stream, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        room = memoryview(cast(bytearray, buffer))
        try:
            piece = self._stream.read(min(len(room), _CHUNK))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._name} is a damaged gzip file: {error}.") from error
        self._read += len(piece)
        # A few kilobytes of gzip can hold terabytes of zeros; memory must not be what finds out.
        if self._read > UNPACKED_LIMIT:
            limit = f"{UNPACKED_LIMIT / 2**30:g} GiB"
            raise InputError(f"{self._name} unpacks to more than {limit}. Unpack it and split it.")
        room[: len(piece)] = piece
        return len(piece)
