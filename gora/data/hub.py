"""Rows of a folder or a hub data set, through the `datasets` library. No code of a data set is ever run."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gora.data.messages import did_you_mean, quoted, siblings_like
from gora.data.parts import PART_ROWS, TablePart, table_parts
from gora.disk import writing
from gora.errors import GoraError, InputError
from gora.recipe.schema import SourceSection

if TYPE_CHECKING:
    import datasets
    import pyarrow

_SLICE = 10_000


@dataclass(frozen=True)
class HubRows:
    """The rows of one split.

    Attributes:
        name: what messages call it: `org/name[train]`.
        rows: the split, memory-mapped.
    """

    name: str
    rows: "datasets.Dataset"

    def parts(self, max_rows: int | None) -> Iterator[TablePart]:
        """Its first rows."""
        return table_parts(self._tables(), self.name, max_rows)

    def digest(self) -> str:
        """A digest of what it holds, in hexadecimal."""
        import pyarrow
        from xxhash import xxh3_128

        digest = xxh3_128()
        for table in self._tables():
            for batch in table.to_batches():
                digest.update(batch.serialize())
            digest.update(pyarrow.schema(table.schema).remove_metadata().serialize())
        return digest.hexdigest()

    def _tables(self) -> "Iterator[pyarrow.Table]":
        tables = self.rows.with_format("arrow")
        for start in range(0, len(tables), _SLICE):
            yield tables[start : start + _SLICE]


@dataclass(frozen=True)
class HubStream:
    """The rows of one split, read as they are needed and kept nowhere.

    Attributes:
        name: what messages call it: `org/name[train]`.
        rows: the split.
        revision: what stands for its content.
    """

    name: str
    rows: "datasets.IterableDataset"
    revision: str

    def parts(self, max_rows: int | None) -> Iterator[TablePart]:
        """Its first rows.

        Raises:
            GoraError: it cannot be read on.
        """
        try:
            yield from table_parts(self.rows.with_format("arrow").iter(PART_ROWS), self.name, max_rows)
        except Exception as error:  # the library raises whatever its readers and the network raise
            raise GoraError(f"{self.name} cannot be read on: {_root_of(error)}") from error

    def digest(self) -> str:
        """The revision: what a stream holds is known when it has been read."""
        return self.revision


def find_in_folder(
    path: Path, source: SourceSection, split_default: tuple[str, ...], *, streaming: bool = False
) -> HubRows | HubStream:
    """Find the rows of a folder: data files, with or without a README that names configurations, or a saved data set.

    Raises:
        InputError: the folder cannot be loaded, or the subset or split is missing or unknown.
    """
    if _is_saved(path):
        return _find_saved(path, source, split_default)
    find = _find_stream if streaming else _find
    return find(str(path), source, split_default, remote=False)


def holds_subsets(path: Path) -> bool:
    """Whether a folder holds a set of several parts by name, and not the files of one."""
    return not _is_saved(path) and _subsets(str(path)) not in ([], ["default"])


def find_on_hub(
    source: SourceSection, split_default: tuple[str, ...], *, streaming: bool = False
) -> HubRows | HubStream:
    """Find the rows of a data set of the hub, or its copy in the local cache.

    Raises:
        InputError: there is no such data set or no way to reach it, or the subset or split is missing or unknown.
    """
    find = _find_stream if streaming else _find
    return find(str(source.path), source, split_default, remote=True)


def _find(path: str, source: SourceSection, split_default: tuple[str, ...], *, remote: bool) -> HubRows:
    import datasets

    try:
        with writing(datasets.config.HF_DATASETS_CACHE), _bars_on_terminals_alone():
            found = datasets.load_dataset(path, name=source.subset)
            split = _choose_split(list(found), source, split_default)
            chosen = found[split] if split in found else datasets.load_dataset(path, name=source.subset, split=split)
    except GoraError:
        raise
    except Exception as error:  # the library raises whatever its builders and the network raise
        raise _explained(error, path, source, remote=remote) from error
    return _rows(chosen, source, split)


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Progress bars of `datasets` are for whoever looks on, and not for files and logs."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _find_stream(path: str, source: SourceSection, split_default: tuple[str, ...], *, remote: bool) -> HubStream:
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, name=source.subset)
        found = datasets.load_dataset(path, name=source.subset, streaming=True)
    except Exception as error:  # as above
        raise _explained(error, path, source, remote=remote) from error
    split = _choose_split(list(found), source, split_default)
    if split not in found:
        raise InputError(f"data.streaming reads whole splits: `split` must be one of {quoted(found)}, not {split!r}.")
    return HubStream(_name(source, split), found[split], str(builder.hash))


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _find_saved(path: Path, source: SourceSection, split_default: tuple[str, ...]) -> HubRows:
    import datasets

    if source.subset is not None:
        raise InputError(f"{source.path} was written by save_to_disk and has no subsets. Leave `subset` out.")
    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # as above
        raise InputError(f"{source.path} cannot be loaded as a saved data set: {_root_of(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        split = _choose_split(list(found), source, split_default)
        if split not in found:
            raise InputError(
                f"{source.path} is a saved data set: `split` must be one of {quoted(found)}, not {split!r}."
            )
        return _rows(found[split], source, split)
    only = str(found.split) if found.split is not None else None
    if source.split not in (None, only):
        raise InputError(f"{source.path} holds one split, {only or 'without a name'}, not {source.split!r}.")
    return _rows(found, source, only)


def _rows(chosen: "datasets.Dataset", source: SourceSection, split: str | None) -> HubRows:
    return HubRows(_name(source, split), chosen)


def _name(source: SourceSection, split: str | None) -> str:
    subset = f"/{source.subset}" if source.subset else ""
    return f"{source.path}{subset}" + (f"[{split}]" if split else "")


def _choose_split(known: list[str], source: SourceSection, split_default: tuple[str, ...]) -> str:
    """The split to read; one like `train[:10%]` or `train+test` is taken as it is when its parts are known."""
    listing = f"Its splits are {quoted(known)}."
    if source.split is None:
        for split in split_default:
            if split in known:
                return split
        raise InputError(
            f"{source.path} has no split {' or '.join(map(repr, split_default))}. {listing} "
            "Set `split` to one of them, as in data.train.split."
        )
    for part in re.sub(r"\[[^]]*\]", "", source.split).split("+"):
        if part.strip() not in known:
            raise InputError(f"{source.path} has no split {part!r}{did_you_mean(part, known) or '.'} {listing}")
    return source.split


def _explained(error: Exception, path: str, source: SourceSection, *, remote: bool) -> InputError:
    subsets = _subsets(path) if isinstance(error, ValueError) else []
    if len(subsets) > 1 and source.subset is None:
        return InputError(
            f"{source.path} has several subsets. Set `subset`, as in data.train.subset, to one of {quoted(subsets)}."
        )
    if subsets and source.subset is not None and source.subset not in subsets:
        near = did_you_mean(source.subset, subsets) or "."
        return InputError(f"{source.path} has no subset {source.subset!r}{near} Known: {quoted(subsets)}.")
    if remote and isinstance(error, OSError):  # not found and not reachable are both OSErrors
        cause = f"neither a local path nor a hub data set that can be reached: {_root_of(error)}"
        near = siblings_like(path) if Path(path).parent.is_dir() else ""
        return InputError(f"{path!r} is {cause}{near}")
    advice = "" if remote else " (With one of its files as `path` instead, a bad row is named by its line.)"
    return InputError(f"{source.path} cannot be loaded: {_root_of(error)}{advice}")


def _subsets(path: str) -> list[str]:
    import datasets

    try:
        return datasets.get_dataset_config_names(path)
    except Exception:  # the first error is the one to show
        return []


def _root_of(error: BaseException) -> str:
    """The first line of the error that started it all; the library wraps it in several less telling ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
