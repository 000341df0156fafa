"""The files that hold a base model's weights, and a fingerprint of every value in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from gora.errors import InputError
from gora.files import parse_json, read_json
from gora.models.source import Source
from gora.models.weight_cache import cached
from gora.runtime.world import World

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_THREADS = 8
_BYTES_AT_A_TIME = 4 << 20
_SHORT = 8


@dataclass(frozen=True, kw_only=True)
class WeightsNote:
    """What plans, checkpoints and adapters remember of the base weights.

    Attributes:
        fingerprint: SHA-256 over name, shape, data type and value of every tensor in the base model's files.
        tensors: the first eight hexadecimal digits of each tensor's own SHA-256, sorted and joined: enough to name the
            tensors that have changed.

    Raises:
        TypeError: one of them is not text, as in a damaged file.
    """

    fingerprint: str
    tensors: str

    def __post_init__(self) -> None:
        if not (isinstance(self.fingerprint, str) and isinstance(self.tensors, str)):
            raise TypeError("the note of the base weights holds something else than text")


@dataclass(frozen=True)
class StoredWeights:
    """The weights in a base model's files, by their digests.

    Attributes:
        digests: SHA-256 over name, shape, data type and value of every tensor, by its name.
    """

    digests: Mapping[str, str]

    @property
    def note(self) -> WeightsNote:
        """What to remember of them; it does not depend on how tensors are distributed over files."""
        digests = sorted(self.digests.values())
        return WeightsNote(
            fingerprint=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            tensors="".join(digest[:_SHORT] for digest in digests),
        )

    def changes_since(self, note: WeightsNote) -> str:
        """What differs from the weights that were noted, in a few words; empty when nothing does."""
        if self.note.fingerprint == note.fingerprint:
            return ""
        known = {note.tensors[start : start + _SHORT] for start in range(0, len(note.tensors), _SHORT)}
        before, total = len(note.tensors) // _SHORT, len(self.digests)
        changed = sorted(name for name, digest in self.digests.items() if digest[:_SHORT] not in known)
        found = [f"{total:,} tensors instead of {before:,}"] if before != total else []
        if changed:
            names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
            found.append(f"{len(changed):,} of {total:,} tensors differ: {names}")
        return "; ".join(found) or "the fingerprints differ"


def stored_weights(source: Source, world: World) -> StoredWeights:
    """The weights in a base model's files, which process 0 reads; all processes have to ask together.

    Raises:
        InputError: there are no such files, or one of them is damaged.
    """
    digests: dict[str, str] = {}
    world.refuse_together(lambda: digests.update(read_stored_weights(source).digests))
    return StoredWeights(world.from_main(lambda: digests))


def read_stored_weights(source: Source) -> StoredWeights:
    """Digests of every tensor in a base model's files, from the cache where the files have not changed.

    Files are read in pieces of a few MiB. A model of the hub that has no safetensors files at its own commit, which
    transformers converts, is identified by that commit.

    Raises:
        InputError: there are no such files, or one of them is damaged.
    """
    files = weight_files(source)
    digests: dict[str, str] = {}
    for path in files:
        digests |= cached(path, _digest_tensors)
    if not files:
        commit = hub_commit(source) or source.revision or "main"
        digests[f"(commit {commit} of the hub)"] = hashlib.sha256(commit.encode()).hexdigest()
    return StoredWeights(digests)


def weight_files(source: Source) -> list[Path]:
    """The safetensors files that transformers reads; empty for a model of the hub that has none at its commit.

    Raises:
        InputError: there are none, or the index of the shards cannot be used.
    """
    explicit, commit = getattr(source.config, "transformers_weights", None), hub_commit(source)
    for name in [explicit] if explicit else [_SINGLE, _INDEX]:
        if path := find_file(source, name, commit):
            return [path] if name.endswith(".safetensors") else _shards(source, path, commit)
    local = Path(source.path).is_dir()
    if local or is_offline_mode():
        where = "the folder" if local else "the hub's cache"
        raise InputError(f"model {source.path!r}: {where} holds neither {_SINGLE} nor {_INDEX}.")
    return []


def tensor_shapes(source: Source) -> dict[str, list[int]]:
    """Name and shape of every tensor in the files of a model.

    Raises:
        InputError: as `weight_files`, or a file is damaged.
    """
    return {name: tensor["shape"] for path in weight_files(source) for name, tensor in read_header(path)[1].items()}


def hub_commit(source: Source) -> str | None:
    """The commit of the hub that a model's configuration lies at in the hub's cache; None for a folder."""
    if Path(source.path).is_dir():
        return None
    configuration = find_file(source, "config.json", source.revision)
    # Files of a commit lie in `snapshots/COMMIT`, as the cache of huggingface_hub is documented.
    parts = configuration.parts if configuration else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def find_file(source: Source, name: str, revision: str | None) -> Path | None:
    """A file of the folder, or of that commit or branch: in the hub's cache, else downloaded."""
    try:
        path = cached_file(source.path, name, revision=revision)
    except OSError:
        return None
    return Path(path) if path else None


def _shards(source: Source, index: Path, commit: str | None) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not an index of safetensors files ({type(error).__name__}: {error}).") from None
    shards = {name: find_file(source, name, commit) for name in names}
    if missing := [name for name, path in shards.items() if path is None]:
        raise InputError(f"{index}: {len(missing)} of {len(names)} files are missing.", missing[:3])
    return [path for path in shards.values() if path is not None]


def _digest_tensors(path: Path) -> dict[str, str]:
    """SHA-256 over name, shape, data type and value of every tensor in one file, by its name."""
    start, tensors = read_header(path)
    with open(path, "rb") as file, ThreadPoolExecutor(_THREADS) as pool:

        def digest(name: str) -> str:
            tensor = tensors[name]
            first, end = (start + offset for offset in tensor["data_offsets"])
            found = hashlib.sha256(f"{name} {tensor['shape']} {tensor['dtype']}\n".encode())
            while first < end:
                values = os.pread(file.fileno(), min(_BYTES_AT_A_TIME, end - first), first)
                if not values:
                    raise InputError(f"{path} became shorter while it was read.")
                found.update(values)
                first += len(values)
            return found.hexdigest()

        return dict(zip(tensors, pool.map(digest, tensors), strict=True))


def read_header(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the values begin, and shape, data type and place of each tensor; see the format of safetensors."""
    try:
        with safe_open(path, framework="numpy"):
            # Header and size of the file are checked by opening it.
            pass
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}).") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header
