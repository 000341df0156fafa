"""Mean gradients kept on disk, from which another plan is made without the model.

Kept beside each gradient are the figures that would need the weight: the importances that multiply by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gora import manifest
from gora.core.importance import Importance, importance
from gora.core.initial import Start, initial_values
from gora.errors import InputError
from gora.gradients.statistics import Norm, WholeStatistics
from gora.gradients.storage import DOCUMENT, read_document, read_shard, write_shards

ArchiveType = Literal["bf16", "fp32"]
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_NORMS: tuple[Norm, ...] = ("frobenius", "spectral")
_WEIGHTED: tuple[Importance, ...] = ("sensitivity", "nuclear-product")


def archive_gradients(
    folder: Path,
    statistics: WholeStatistics,
    names: Mapping[str, tuple[int, int]],
    kind: ArchiveType,
    inputs: dict[str, Any],
    *,
    write: bool = True,
) -> None:
    """Publish the mean gradient of every layer, and its importances.

    Args:
        folder: where it appears.
        statistics: answers about the gradients.
        names: (out, in) of every layer.
        kind: type on disk; bf16 halves the room and rounds to three digits.
        inputs: what the gradients are of, for the plans made from them.
        write: off in all of several processes but one; they take part in the answers.
    """
    layers = {
        name: {
            "shape": list(shape),
            "norm": statistics.gradient_norm(name),
            "weight_norms": {kind: statistics.weight_norm(name, kind) for kind in _NORMS},
            **{weighted: statistics.importance(name, weighted) for weighted in _WEIGHTED},
        }
        for name, shape in names.items()
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, statistics.mean(name).to(_TYPES[kind])

    if write:
        needed = sum(rows * columns for rows, columns in names.values()) * _TYPES[kind].itemsize
        write_shards(folder, tensors(), {"inputs": inputs, "layers": layers}, needed=needed)
    else:
        for _ in tensors():
            pass


class ArchivedStatistics:
    """Statistics of gradients on disk; one layer is in memory at a time.

    Args:
        folder: what `archive_gradients` published.

    Raises:
        InputError: the folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / DOCUMENT).is_file() and not (folder / manifest.NAME).is_file():
            inside = folder / "gradients"
            known = (inside / DOCUMENT).is_file()
            todo = f"Give {inside}." if known else "`gora precompute RECIPE --keep-gradients bf16` makes one."
            raise InputError(f"{folder} is not a folder of kept gradients. {todo}")
        manifest.verify(folder, "Make it again with `gora precompute --keep-gradients`.")
        document = read_document(folder)
        self._folder, self._document = folder, document
        try:
            self.inputs: dict[str, Any] = document["inputs"]
            self._layers: dict[str, dict[str, Any]] = document["layers"]
            self.shapes = {
                name: (int(layer["shape"][0]), int(layer["shape"][1])) for name, layer in self._layers.items()
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{folder} does not hold kept gradients: {error!r} in its document.") from None

    def importance(self, name: str, kind: Importance) -> float:
        """See `Statistics`."""
        if kind in self._layers[name]:
            return float(self._layers[name][kind])
        gradient = self._read(name)
        return importance(gradient, gradient, kind)

    def gradient_norm(self, name: str) -> float:
        """See `Statistics`."""
        return float(self._layers[name]["norm"])

    def weight_norm(self, name: str, kind: Norm) -> float:
        """See `Statistics`.

        Raises:
            InputError: an earlier gora has kept the gradients, without norms of weights.
        """
        try:
            return float(self._layers[name]["weight_norms"][kind])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self._folder} does not say how large the weights are, which gora.step needs. Make it again with "
                "`gora precompute --keep-gradients`."
            ) from None

    def factors(self, name: str, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """See `Statistics`."""
        return initial_values(name, self._read(name), rank, start)

    def _read(self, name: str) -> Tensor:
        tensor = read_shard(self._folder, self._document, name).float()
        if tensor.shape != self.shapes[name]:
            raise InputError(
                f"{self._folder}: the gradient of {name} is {tuple(tensor.shape)}, not {self.shapes[name]}."
            )
        if not tensor.isfinite().all():
            raise InputError(f"{self._folder}: the gradient of {name} holds NaN or infinity.")
        return tensor
