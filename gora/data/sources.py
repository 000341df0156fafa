"""From a `path` in the recipe to rows: which files it names, and which reader a source needs."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gora.assets import resolve
from gora.data.hub import HubRows, HubStream, find_in_folder, find_on_hub
from gora.data.image_folder import ImageFolder, find_image_folder
from gora.data.jsonl import json_parts, refuse_single_object
from gora.data.messages import siblings_like
from gora.data.parts import Part
from gora.data.rows import Rows
from gora.data.tables import csv_parts, parquet_parts
from gora.errors import GoraError, InputError
from gora.recipe.schema import SourceSection

_JSON = (".jsonl", ".ndjson", ".json")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_JSON, *_SEPARATORS, ".parquet")
_PATTERN = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: as the recipe names it.
        path: the file.
        read: makes its parts, given how many rows are wanted.
        state: what changes with its content, as it was when it was found: size and times.
    """

    name: str
    path: Path
    read: Callable[[int | None], Iterator[Part]]
    state: tuple[int, ...]

    @property
    def kind(self) -> str:
        """`.jsonl`, `.csv`, ..."""
        return _suffix(self.path)

    def parts(self, max_rows: int | None) -> Iterator[Part]:
        """Its first rows.

        Raises:
            InputError: it cannot be read as a whole.
            GoraError: it has changed since it was found.
        """
        yield from self.read(max_rows)
        if _state(self.path) != self.state:
            raise GoraError(f"{self.name} has changed while it was read. Start the command again.")

    def digest(self) -> str:
        """A digest of its bytes, in hexadecimal; raises InputError."""
        from xxhash import xxh3_128

        digest = xxh3_128()
        try:
            with open(self.path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error.strerror or error}.") from error
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files or the split of a data set that a recipe's source names; nothing of them has been read.

    Attributes:
        name: as messages call it: `train.jsonl`, `org/name[train]`.
        files: what is read, one after the other.
        max_rows: of all files together, None for all.
    """

    name: str
    files: tuple[SourceFile | HubRows | HubStream | ImageFolder, ...]
    max_rows: int | None

    @property
    def typed(self) -> bool:
        """Whether values have types of their own; in a CSV file every value is text."""
        return not any(isinstance(file, SourceFile) and file.kind in _SEPARATORS for file in self.files)

    def identity(self) -> list[tuple[str, str]]:
        """The name of every file, and what tells its content from another one without reading it."""
        return [
            (file.name, f"{file.state[0]} bytes" if isinstance(file, SourceFile) else file.digest())
            for file in self.files
        ]

    @property
    def folders(self) -> list[Path]:
        """Where its files lie, by which they name others."""
        return [file.path.absolute().parent for file in self.files if isinstance(file, SourceFile)]

    def states(self) -> list[tuple[int, ...]]:
        """What changes with the content of local files: size and times."""
        return [file.state for file in self.files if isinstance(file, SourceFile)]

    def digests(self) -> list[tuple[str, str]]:
        """The name of every file, and a digest of what it holds."""
        return [(file.name, file.digest()) for file in self.files]

    def parts(self) -> Iterator[Part]:
        """The rows in their order.

        Raises:
            InputError: a file cannot be read as a whole.
            GoraError: it has changed since it was found.
        """
        left = self.max_rows
        for file in self.files:
            if left == 0:
                return
            for part in file.parts(left):
                left = None if left is None else left - part.read
                yield part

    def explain_no_row(self, name: str) -> None:
        """Find out why no row of a file could be read; raises InputError where its rows do not say it."""
        for file in self.files:
            if isinstance(file, SourceFile) and file.name == name and file.kind in _JSON:
                refuse_single_object(file.path, name)


def find_source(
    source: SourceSection, split_default: tuple[str, ...], *, streaming: bool = False, images: bool = False
) -> Source:
    """Find a source: files, a folder, or a data set of the hub.

    Args:
        source: what to read; several paths are read one after the other, and so are the files that a pattern matches,
            in the order of their names.
        split_default: the splits to look for, in this order, when the source names none.
        streaming: read a set of the hub as rows are needed, and keep none of its files.
        images: a folder may have a folder of images for each class.

    Raises:
        InputError: nothing is there, or it is of no known kind.
    """
    asked = [source.path] if isinstance(source.path, str) else source.path
    paths = [path for each in asked for path in _matched(each)]
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise InputError(f"{repeated} is named more than once in one source, so its rows would be read twice.")
    files = tuple(_found(path, source, split_default, streaming, images) for path in paths)
    name = files[0].name if len(files) == 1 else ", ".join(asked)
    return Source(name=name, files=files, max_rows=source.max_rows)


def read_rows(source: SourceSection, split_default: tuple[str, ...]) -> Rows:
    """Read the rows of a source into memory, which is for small ones; see `find_source`.

    Returns:
        The rows, with the place of each and a list of those that could not be read.

    Raises:
        InputError: nothing is there, it cannot be read as a whole, or it holds no rows.
    """
    found = find_source(source, split_default)
    rows = Rows(found.name)
    good: Counter[str] = Counter()
    for part in found.parts():
        parsed = part.parsed()
        good[part.name] += len(parsed.rows)
        rows.extend(parsed)
    if not rows.read:
        raise InputError(f"{rows.name} holds no rows.")
    for name in (name for name, count in good.items() if not count):
        found.explain_no_row(name)
    return rows


def _matched(path: str) -> list[str]:
    """The files that a path names, which may be a pattern such as `data/*.jsonl`."""
    local = str(Path(path).expanduser())
    if not _PATTERN.intersection(path) or Path(local).exists():
        return [path]
    found = sorted(each for each in glob.glob(local, recursive=True) if Path(each).is_file())
    if not found:
        raise InputError(f"{path} matches no file{siblings_like(path) or '.'}")
    return found


def _found(
    named: str, source: SourceSection, split_default: tuple[str, ...], streaming: bool, images: bool
) -> SourceFile | HubRows | HubStream | ImageFolder:
    path = Path(resolve(named, "data")).expanduser()
    if path.is_file():
        return SourceFile(name=named, path=path, read=_reader(path, named, source), state=_state(path))
    source = source.model_copy(update={"path": named})
    if source.separator is not None:
        raise InputError(f"{named} is not a CSV or TSV file and has no `separator`. Set it to null.")
    if path.is_dir() and images and (found := find_image_folder(path, source, split_default)):
        return found
    if path.is_dir():
        return find_in_folder(path, source, split_default, streaming=streaming)
    if path.exists():
        raise InputError(f"{named} is neither a file nor a folder.")
    if _looks_local(named):
        raise InputError(f"{named} does not exist{siblings_like(named) or '.'}")
    return find_on_hub(source, split_default, streaming=streaming)


def _reader(path: Path, named: str, source: SourceSection) -> Callable[[int | None], Iterator[Part]]:
    for key, value in (("subset", source.subset), ("split", source.split)):
        if value is not None:
            raise InputError(f"{named} is a file and has no {key} {value!r}. Set `{key}` to null.")
    suffix = _suffix(path)
    if suffix not in _KINDS:
        raise InputError(f"{named} is of no known kind. Its name must end in one of {', '.join(_KINDS)}.")
    if suffix in _SEPARATORS:
        return partial(csv_parts, path, named, separator=source.separator or _SEPARATORS[suffix])
    if source.separator is not None:
        raise InputError(f"{named} is not a CSV or TSV file and has no `separator`. Set it to null.")
    return partial(json_parts if suffix in _JSON else parquet_parts, path, named)


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _suffix(path: Path) -> str:
    """`.jsonl` for `x.jsonl` and for `x.jsonl.gz`; whether a file is packed is told by its content."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _looks_local(path: str) -> bool:
    """Whether a path cannot be a hub id, which is `name` or `organisation/name`."""
    return (
        path.startswith((".", "/", "~", os.sep)) or "\\" in path or path.count("/") > 1 or _suffix(Path(path)) in _KINDS
    )
