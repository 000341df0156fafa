"""Rows for an image head: an image, in the row or in a file that it names, and the number of its class."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.data.choices import choice_of
from gora.data.encode import Encoded
from gora.data.messages import described
from gora.data.pictures import decode
from gora.data.reading import Reading
from gora.data.rows import Unusable
from gora.data.segments import column_of
from gora.errors import InputError
from gora.recipe.schema import DataSection


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image that can be decoded, and what it shows.

    Attributes:
        label: the number of its class.
        digest: 128 bits of its bytes (xxh3), in hexadecimal.
        file: where they lie; None where `data` holds them.
        data: the content of an image file.
    """

    label: int
    digest: str
    file: str | None
    data: bytes | None

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        data = None if self.data is None else base64.b64encode(self.data).decode()
        return {"label": self.label, "digest": self.digest, "file": self.file, "data": data}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LabelledImage:
        """What `as_json` made."""
        data = None if values["data"] is None else base64.b64decode(values["data"])
        return cls(values["label"], values["digest"], values["file"], data)


@dataclass(frozen=True, slots=True)
class EncodedImage(Encoded):
    """One example: its ids are those of the image's digest, which stand for it in fingerprints and checksums.

    Attributes:
        file, data: see `LabelledImage`.
    """

    file: str | None = None
    data: bytes | None = None


class ImageRows:
    """The format of rows with an image and its class.

    Args:
        data: the recipe's section, with `choices`.
        typed: whether values have types; without them (CSV) a label is a number in digits.
        folders: where the files lie that name images by relative paths.
    """

    def __init__(self, data: DataSection, *, typed: bool = True, folders: Sequence[Path] = ()) -> None:
        self._data, self._typed, self._folders = data, typed, tuple(dict.fromkeys(folders))
        self._choices = data.choices or ()

    @property
    def title(self) -> str:
        """`format image, 10 classes`."""
        return f"format image, {len(self._choices)} classes"

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the image and of its class."""
        return {self._data.image: "data.image", self._data.label: "data.label"}

    @property
    def optional(self) -> set[str]:
        """None."""
        return set()

    @property
    def refused(self) -> dict[str, str]:
        """No column has a meaning of its own here."""
        return {}

    def notes(self) -> list[str]:
        """None."""
        return []

    def read(self, row: dict[str, Any]) -> Reading:
        """One row, whose image is decoded to see that it can be; raises Unusable."""
        label = choice_of(row, self._data.label, self._choices, typed=self._typed)
        file, data = self._content(column_of(row, self._data.image))
        decode(data)
        return Reading([LabelledImage(label, digest_of(data), file, None if file else data)])

    def _content(self, value: Any) -> tuple[str | None, bytes]:
        """Where an image lies, unless it is in the row, and its bytes."""
        if isinstance(value, dict):
            # As the datasets library writes images: the bytes, or the path of a file.
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return None, value
        if not isinstance(value, str) or not value:
            raise Unusable(f"column {self._data.image!r} must be an image or the path of one, not {described(value)}")
        path = self._find(value)
        return str(path), read_file(path)

    def _find(self, name: str) -> Path:
        path = Path(name).expanduser()
        if path.is_absolute():
            return path
        if len(self._folders) > 1:
            raise InputError(
                f"{name!r} is a relative path, and the files of its source lie in different folders. Give them as "
                "sources of their own, or absolute paths."
            )
        return (self._folders[0] / path) if self._folders else path.absolute()


def read_file(path: Path) -> bytes:
    """The content of an image file; raises Unusable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Unusable(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def digest_of(data: bytes) -> str:
    """128 bits that no other image shares, in hexadecimal."""
    from xxhash import xxh3_128

    return xxh3_128(data).hexdigest()


class ImageEncoder:
    """Turns labelled images into examples; their pixels are decoded when they are trained on."""

    def shortened(self, row: LabelledImage) -> LabelledImage:
        """An image is never cut."""
        return row

    def __call__(self, rows: Iterable[LabelledImage]) -> Iterator[EncodedImage | None]:
        """Encode rows; none is left out."""
        for row in rows:
            ids = array("i", bytes.fromhex(row.digest))
            yield EncodedImage(ids, array("i", [row.label]), file=row.file, data=row.data)
