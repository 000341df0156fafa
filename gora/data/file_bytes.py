"""The bytes of a local file, unpacked where they are a gzip stream."""

import gzip
import zlib
from pathlib import Path

from gora.errors import InputError

UNPACKED_LIMIT = 16 * 2**30
UTF8_MARK = b"\xef\xbb\xbf"

_GZIP = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs.github.com/spec/"
_CHUNK = 2**20


def read_content(path: Path, name: str) -> bytes:
    """Read a file whole; a gzip stream is told by its first bytes, whatever the file is called, and unpacked.

    Raises:
        InputError: the file cannot be read, is empty, is a damaged gzip stream, unpacks to more than
            `UNPACKED_LIMIT` bytes, is UTF-16, or a pointer of Git LFS.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from error
    if content.startswith(_GZIP):
        content = _unpacked(path, name)
    if not content:
        raise InputError(f"{name} is empty.")
    if content.startswith(_POINTER):
        raise InputError(f"{name} is a pointer of Git LFS and not its content. Run `git lfs pull` in its folder.")
    if content.startswith(_UTF16_MARKS):
        raise InputError(f"{name} is UTF-16 text. Save it as UTF-8.")
    return content


def _unpacked(path: Path, name: str) -> bytes:
    content = bytearray()
    try:
        with gzip.open(path) as stream:
            while chunk := stream.read(_CHUNK):
                content += chunk
                # A few kilobytes of gzip can hold terabytes of zeros; memory must not be what finds out.
                if len(content) > UNPACKED_LIMIT:
                    raise InputError(
                        f"{name} unpacks to more than {UNPACKED_LIMIT / 2**30:g} GiB. Unpack it and split it."
                    )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name} is a damaged gzip file: {error}.") from error
    return bytes(content)
