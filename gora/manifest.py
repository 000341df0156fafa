"""What a folder held when it was published: size and SHA-256 of every file, compared before the folder is used.

The manifest is written last, inside the folder that `gora.files.publish` renames into place. A file that was truncated,
changed or lost afterwards is noticed; files that were added are not gora's and are left out of account.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.files import read_json, write_json

NAME = "manifest.json"
_VERSION = 1
_CHUNK = 2**20


def seal(folder: Path, *, unlisted: Collection[str] = (), known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of all files in a folder, subfolders included.

    Args:
        folder: where.
        unlisted: names of files that may change later, such as a model card.
        known: SHA-256 of files that need not be read again, by their names in the folder.
    """
    known = known or {}
    left_out = {folder / name for name in (NAME, *unlisted)}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in left_out]
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda path: known.get(path.relative_to(folder).as_posix()) or sha256_of(path), paths))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    content = {"format_version": _VERSION, "files": files}
    # Its own checksum: a manifest that lost entries or digits must not pass for one that never had them.
    write_json(folder / NAME, {**content, "sha256": _checksum(content)})


def is_sealed(folder: Path) -> bool:
    """Whether the folder has a manifest, readable or not."""
    return (folder / NAME).is_file()


def listed(folder: Path) -> set[str]:
    """Names that the manifest lists, itself included, relative to the folder; empty where there is none to read."""
    try:
        return {*_read(folder), NAME}
    except ValueError:
        return set()


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words such as `optimizer.pt is missing`; None when it is as published.

    Every byte is read, a megabyte at a time. Sizes are compared first, so that a truncated file costs nothing.
    """
    try:
        files = _read(folder)
    except ValueError as error:
        return str(error)
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != known["size"]:
            return f"{name} has {size:,} bytes instead of {known['size']:,}"
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda name: _digest_or_reason(folder / name), files)
        for name, digest in zip(files, digests, strict=True):
            if digest != files[name]["sha256"]:
                return f"{name} was changed after it was written (SHA-256 differs)"
    return None


def verify(folder: Path, advice: str) -> None:
    """Refuse a folder that is not as it was published.

    Raises:
        InputError: naming the file and what is wrong with it; `advice` says what to do.
    """
    if reason := damage(folder):
        raise InputError(f"{folder} is damaged: {reason}. {advice}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read a megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_or_reason(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return str(error)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{NAME} is missing")
    try:
        document = read_json(path)
        claimed = document.pop("sha256")
        files: dict[str, dict[str, Any]] = document["files"]
        valid = claimed == _checksum(document) and document["format_version"] == _VERSION
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{NAME} cannot be read ({type(error).__name__})") from None
    if not valid or any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise ValueError(f"{NAME} was changed after it was written")
    return files


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
