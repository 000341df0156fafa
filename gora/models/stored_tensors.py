"""Single tensors of a checkpoint: the file and place of each, read and written without the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from gora.files import write_json
from gora.models.source import Source
from gora.models.weight_files import read_header, weight_files

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_AT_A_TIME = 2
_PIECE_BYTES = 1 << 20
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        name: its name there.
        path: the file.
        dtype: its type.
        shape: its shape.
        start: where its bytes begin.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Its values, on the CPU: mapped from the file, privately, for as long as the tensor lives."""
        if not self.bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        with open(self.path, "rb") as file:
            content = mmap(file.fileno(), 0, access=ACCESS_COPY)
        return torch.frombuffer(content, dtype=self.dtype, count=prod(self.shape), offset=self.start).view(self.shape)


def stored_tensors(source: Source) -> list[StoredTensor] | None:
    """Every tensor in a model's files, in the files' order; None where one has a type that is not known here.

    Raises:
        InputError: as `weight_files`, or a file is damaged.
    """
    found = []
    for path in weight_files(source):
        start, header = read_header(path)
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if told["dtype"] not in _TYPES:
                return None
            found.append(
                StoredTensor(
                    name=name,
                    path=path,
                    dtype=_TYPES[told["dtype"]],
                    shape=tuple(told["shape"]),
                    start=start + told["data_offsets"][0],
                )
            )
    return found


def tensors_of(model: PreTrainedModel, stored: Iterable[StoredTensor]) -> dict[str, StoredTensor] | None:
    """The stored tensor of every parameter and saved buffer, by its name in the model.

    Names are translated as transformers does when it loads the checkpoint.

    Args:
        model: not wrapped; weights may be on the meta device. Tied parameters are found under one of their names.
        stored: those of the model's files.

    Returns:
        None where a parameter has none of its own: it is missing, or it is made of several.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state: dict[str, Any] = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, StoredTensor] = {}
    for tensor in stored:
        name, made_of_several = rename_source_key(tensor.name, renamings, converters, prefix, state)
        if name not in state and tensor.name in state:
            name, made_of_several = rename_source_key(tensor.name, [], [], prefix, state)
        if name not in state:
            continue
        if made_of_several is not None or tuple(state[name].shape) != tensor.shape or name in found:
            return None
        found[name] = tensor
    held = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if name in found}
    return found if all(id(value) in held for value in model.parameters()) else None


def write_again(
    stored: Iterable[StoredTensor],
    folder: Path,
    dtype: torch.dtype,
    change: Callable[[StoredTensor], Iterable[Tensor] | None],
    *,
    done: Callable[[int], None],
    finished: Callable[[Path], None],
) -> None:
    """Write a checkpoint's files again, two tensors at a time, each to its place.

    Args:
        stored: all tensors, file by file.
        folder: where the files go, under the names that they have; the index is written last.
        dtype: of all floating tensors.
        change: the new values of a tensor in order, in pieces of any floating type; None leaves it as it is, and its
            bytes are copied.
        done: told the bytes of each tensor that has been written.
        finished: told each file that has been written.

    Raises:
        OverflowError: a value does not fit into the type.
    """
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in stored:
        by_file.setdefault(tensor.path, []).append(tensor)
    places: dict[str, str] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for path, tensors in by_file.items():
            name = path.name if len(by_file) > 1 else "model.safetensors"
            with open(folder / name, "wb", buffering=0) as file:
                header, begins = _header(path, tensors, dtype)
                file.write(header)
                jobs = [
                    pool.submit(_write, file.fileno(), begin, tensor, dtype, change)
                    for tensor, begin in zip(tensors, begins, strict=True)
                ]
                try:
                    for tensor, job in zip(tensors, jobs, strict=True):
                        job.result()
                        done(tensor.bytes)
                        places[tensor.name] = name
                finally:
                    # After an error, none begins that has not begun; the file is open until the others have ended.
                    wait([job for job in jobs if not job.cancel()])
            finished(folder / name)
    if len(by_file) > 1:
        index = {"metadata": {"total_size": written_bytes(stored, dtype)}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / _INDEX, index)


def written_bytes(stored: Iterable[StoredTensor], dtype: torch.dtype) -> int:
    """Bytes that `write_again` writes, without headers."""
    return sum(prod(tensor.shape) * _type_of(tensor, dtype).itemsize for tensor in stored)


def _type_of(tensor: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype.is_floating_point else tensor.dtype


def row_pieces(values: Tensor, like: Tensor | None = None) -> Iterator[Tensor]:
    """Blocks of rows of about a megabyte, as views; they are those of `like` where that is given."""
    sized = values if like is None else like
    if not values.dim() or sized.nbytes <= _PIECE_BYTES:
        yield values
        return
    yield from values.split(max(1, _PIECE_BYTES // (sized.nbytes // len(values))))


def _write(
    file: int,
    begin: int,
    tensor: StoredTensor,
    dtype: torch.dtype,
    change: Callable[[StoredTensor], Iterable[Tensor] | None],
) -> None:
    """Put the new values of a tensor into its place."""
    pieces = change(tensor)
    for exact in row_pieces(tensor.read()) if pieces is None else pieces:
        rounded = exact.to(_type_of(tensor, dtype)).cpu().contiguous()
        if rounded.dtype == torch.float16 and not rounded.isfinite().all() and exact.isfinite().all():
            raise OverflowError(f"{tensor.name} holds values that float16 does not reach")
        left = memoryview(rounded.reshape(-1).view(torch.uint8).numpy().data)
        while left:
            written = os.pwrite(file, left, begin)
            left, begin = left[written:], begin + written


def _header(path: Path, tensors: list[StoredTensor], dtype: torch.dtype) -> tuple[bytes, list[int]]:
    """The head of a file of safetensors (its length, then JSON with type, shape and place of every tensor), and where
    in the file each tensor begins."""
    with safe_open(path, framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end, begins = 0, []
    for tensor in tensors:
        held = _type_of(tensor, dtype)
        begins.append(end)
        begin, end = end, end + prod(tensor.shape) * held.itemsize
        header[tensor.name] = {"dtype": _NAMES[held], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, [len(head) + begin for begin in begins]
