"""From a `path` in the recipe to rows: which reader a source needs."""

import os
from pathlib import Path

from gora.assets import resolve
from gora.data.hub import read_folder, read_hub
from gora.data.jsonl import read_json
from gora.data.messages import siblings_like
from gora.data.rows import Rows
from gora.data.tables import read_csv, read_parquet
from gora.errors import InputError
from gora.recipe.schema import SourceSection

_READERS = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def read_rows(source: SourceSection, split_default: tuple[str, ...]) -> Rows:
    """Read the rows of a source: a file, a folder, or a data set of the hub.

    Args:
        source: what to read.
        split_default: the splits to look for, in this order, when the source names none.

    Returns:
        The rows, with the place of each and a list of those that could not be read.

    Raises:
        InputError: nothing is there, it cannot be read as a whole, or it holds no rows.
    """
    rows = _read(source, split_default)
    if not rows.read:
        raise InputError(f"{rows.name} holds no rows.")
    return rows


def _read(source: SourceSection, split_default: tuple[str, ...]) -> Rows:
    path = Path(resolve(source.path, "data")).expanduser()
    if path.is_file():
        return _read_file(path, source)
    if path.is_dir():
        return read_folder(path, source, split_default)
    if path.exists():
        raise InputError(f"{source.path} is neither a file nor a folder.")
    if _looks_local(source.path):
        raise InputError(f"{source.path} does not exist{siblings_like(source.path) or '.'}")
    return read_hub(source, split_default)


def _read_file(path: Path, source: SourceSection) -> Rows:
    for key, value in (("subset", source.subset), ("split", source.split)):
        if value is not None:
            raise InputError(f"{source.path} is a file and has no {key} {value!r}. Set `{key}` to null.")
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise InputError(f"{source.path} is of no known kind. Its name must end in one of {', '.join(_READERS)}.")
    return reader(path, source.path, source.max_rows)


def _suffix(path: Path) -> str:
    """`.jsonl` for `x.jsonl` and for `x.jsonl.gz`; whether a file is packed is told by its content."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _looks_local(path: str) -> bool:
    """Whether a path cannot be a hub id, which is `name` or `organisation/name`."""
    return (
        path.startswith((".", "/", "~", os.sep))
        or "\\" in path
        or path.count("/") > 1
        or _suffix(Path(path)) in _READERS
    )
