"""A folder of images that has a folder for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gora.data.messages import quoted
from gora.data.rows import Rows
from gora.errors import InputError
from gora.recipe.schema import SourceSection

IMAGE, LABEL = "image", "label"
"""The columns that its rows have."""
_PART = 200
_DATA = {".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".json", ".tar", ".zip"}
_SPLITS = ("train", "test", "validation", "val")
_OF_SYSTEMS = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Every file below the folders of its classes, in the order of their names; each is an image, or a bad row.

    Attributes:
        name: what messages call it.
        path: the folder.
    """

    name: str
    path: Path

    @cached_property
    def classes(self) -> list[str]:
        """The names of its classes, sorted."""
        return sorted({label for _, label in self._files})

    def parts(self, max_rows: int | None) -> Iterator[FolderPart]:
        """Its first images."""
        files = self._files[:max_rows]
        for start in range(0, len(files), _PART):
            yield FolderPart(name=self.name, before=start, root=self.path, files=files[start : start + _PART])

    def digest(self) -> str:
        """What changes with its files: their names, sizes and times. A run compares their bytes when it reads them."""
        from xxhash import xxh3_128

        digest = xxh3_128(str(self.path.absolute()).encode())
        for file, _ in self._files:
            status = (self.path / file).stat()
            digest.update(f"{file}\n{status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _files(self) -> list[tuple[str, str]]:
        """Their paths in this folder, and the names of their classes."""
        return [
            (str(file.relative_to(self.path)), folder.name)
            for folder in _folders(self.path)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not _passed_over(file.relative_to(folder))
        ]


@dataclass(frozen=True, kw_only=True)
class FolderPart:
    """Some images of a folder; see `Part`.

    Attributes:
        name: what messages call the folder.
        before: images that come before these.
        root: the folder.
        files: paths in it, and the names of their classes.
    """

    name: str
    before: int
    root: Path
    files: Sequence[tuple[str, str]]

    @property
    def read(self) -> int:
        """How many there are."""
        return len(self.files)

    def parsed(self) -> Rows:
        """A row for each, placed by its path."""
        rows = Rows(self.name, before=self.before)
        for file, label in self.files:
            rows.keep({IMAGE: str((self.root / file).absolute()), LABEL: label}, f"{self.name.rstrip('/')}/{file}")
        return rows


def find_image_folder(path: Path, source: SourceSection, split_default: Sequence[str]) -> ImageFolder | None:
    """The images of a folder; None where it holds files of data, which say themselves what is in it.

    A split is a folder in it that has the folders of the classes.

    Raises:
        InputError: there is no such split, or there are no folders of classes.
    """
    if any(file.suffix.lower() in _DATA for file in [*path.iterdir(), *path.glob("data/*")] if file.is_file()):
        return None
    if source.subset is not None:
        raise InputError(f"{source.path} is a folder of images and has no subsets. Set `subset` to null.")
    named = [source.split] if source.split else list(split_default)
    for split in named:
        if (path / split).is_dir() and _folders(path / split):
            return ImageFolder(name=f"{source.path}[{split}]", path=path / split)
    folders = [folder.name for folder in _folders(path)]
    if source.split is not None or any(name in _SPLITS and _folders(path / name) for name in folders):
        wanted = " or ".join(map(repr, named))
        raise InputError(f"{source.path} has no split {wanted}. Set `split`. Its folders are {quoted(folders)}.")
    if not folders:
        raise InputError(
            f"{source.path} holds neither files of data nor folders of images. Give a folder that has a folder for "
            "each class, such as cats/1.jpg and dogs/1.jpg."
        )
    return ImageFolder(name=str(source.path), path=path)


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _passed_over(file: Path) -> bool:
    """What systems put into folders by themselves."""
    return any(part.startswith(".") for part in file.parts) or file.name.lower() in _OF_SYSTEMS
