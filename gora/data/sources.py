"""From a `path` in the recipe to rows: which files it names, and which reader a source needs."""

import glob
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

_JSON = (".jsonl", ".ndjson", ".json")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_JSON, *_SEPARATORS, ".parquet")
_PATTERN = frozenset("*?[")


def read_rows(source: SourceSection, split_default: tuple[str, ...]) -> Rows:
    """Read the rows of a source: files, a folder, or a data set of the hub.

    Args:
        source: what to read; several paths are read one after the other, and so are the files that a pattern matches,
            in the order of their names.
        split_default: the splits to look for, in this order, when the source names none.

    Returns:
        The rows, with the place of each and a list of those that could not be read.

    Raises:
        InputError: nothing is there, it cannot be read as a whole, or it holds no rows.
    """
    asked = [source.path] if isinstance(source.path, str) else source.path
    paths = [path for each in asked for path in _matched(each)]
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise InputError(f"{repeated} is named more than once in one source, so its rows would be read twice.")
    if len(paths) == 1:
        rows = _read(paths[0], source, source.max_rows, split_default)
    else:
        rows = Rows(", ".join(asked))
        for path in paths:
            if rows.read == source.max_rows:
                break
            left = None if source.max_rows is None else source.max_rows - rows.read
            rows.extend(_read(path, source, left, split_default))
    if not rows.read:
        raise InputError(f"{rows.name} holds no rows.")
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


def _read(named: str, source: SourceSection, max_rows: int | None, split_default: tuple[str, ...]) -> Rows:
    path = Path(resolve(named, "data")).expanduser()
    if path.is_file():
        return _read_file(path, named, source, max_rows)
    source = source.model_copy(update={"path": named, "max_rows": max_rows})
    if source.separator is not None:
        raise InputError(f"{named} is not a CSV or TSV file and has no `separator`. Set it to null.")
    if path.is_dir():
        return read_folder(path, source, split_default)
    if path.exists():
        raise InputError(f"{named} is neither a file nor a folder.")
    if _looks_local(named):
        raise InputError(f"{named} does not exist{siblings_like(named) or '.'}")
    return read_hub(source, split_default)


def _read_file(path: Path, named: str, source: SourceSection, max_rows: int | None) -> Rows:
    for key, value in (("subset", source.subset), ("split", source.split)):
        if value is not None:
            raise InputError(f"{named} is a file and has no {key} {value!r}. Set `{key}` to null.")
    suffix = _suffix(path)
    if suffix not in _KINDS:
        raise InputError(f"{named} is of no known kind. Its name must end in one of {', '.join(_KINDS)}.")
    if suffix in _SEPARATORS:
        return read_csv(path, named, max_rows, source.separator or _SEPARATORS[suffix])
    if source.separator is not None:
        raise InputError(f"{named} is not a CSV or TSV file and has no `separator`. Set it to null.")
    return read_json(path, named, max_rows) if suffix in _JSON else read_parquet(path, named, max_rows)


def _suffix(path: Path) -> str:
    """`.jsonl` for `x.jsonl` and for `x.jsonl.gz`; whether a file is packed is told by its content."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _looks_local(path: str) -> bool:
    """Whether a path cannot be a hub id, which is `name` or `organisation/name`."""
    return (
        path.startswith((".", "/", "~", os.sep)) or "\\" in path or path.count("/") > 1 or _suffix(Path(path)) in _KINDS
    )
