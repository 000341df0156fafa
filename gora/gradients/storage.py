"""Sums on disk: a folder of safetensors shards and one JSON document, published as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gora import manifest
from gora.disk import require_room
from gora.errors import InputError
from gora.files import publish, read_json

DOCUMENT = "state.json"
_SHARD_BYTES = 4 * 2**30


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], document: dict[str, Any], *, needed: int | None = None
) -> None:
    """Publish tensors and a document as a folder; at most one shard is in memory at a time.

    Args:
        folder: where it appears.
        tensors: names and values, on any device.
        document: anything JSON can say.
        needed: bytes of all tensors, where they are known beforehand; those of each shard are in any case.

    Raises:
        GoraError: there is not enough room on the disk.
    """
    from safetensors.torch import save_file

    with publish(folder, needed) as aside:
        aside.mkdir()
        places: dict[str, str] = {}
        for number, shard in enumerate(_shards(tensors)):
            file = f"sums-{number:05d}.safetensors"
            require_room(folder, sum(tensor.nbytes for tensor in shard.values()))
            save_file(shard, aside / file)
            places |= dict.fromkeys(shard, file)
        (aside / DOCUMENT).write_text(json.dumps({**document, "tensors": places}), encoding="utf-8")
        manifest.seal(aside)


def read_document(folder: Path) -> dict[str, Any]:
    """The document of a published folder.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        document = read_json(folder / DOCUMENT)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), dict):
        raise InputError(f"{folder / DOCUMENT} does not describe any tensors.")
    return document


def read_shards(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all tensors of a published folder, one at a time, on the CPU.

    Raises:
        InputError: see `read_shard`.
    """
    document = read_document(folder)
    for name in document["tensors"]:
        yield name, read_shard(folder, document, name)


def read_shard(folder: Path, document: dict[str, Any], name: str) -> Tensor:
    """One tensor of a published folder, on the CPU.

    Raises:
        InputError: its shard is missing, broken, or outside the folder.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / str(document["tensors"].get(name))
    if path.parent != folder:
        raise InputError(f"{folder / DOCUMENT} names a file outside its folder: {path}")
    try:
        with safe_open(path, framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return tensor


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        held = torch.empty(tensor.shape, dtype=tensor.dtype)
        held.copy_(tensor)
        shard[name] = held
        size += held.numel() * held.element_size()
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
