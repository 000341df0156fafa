"""Merging without loading: weights are read from the base's files one by one, and written one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig

from gora import manifest
from gora.adapters.fold import adapted_weights, folded_bias, folded_pieces
from gora.adapters.load import load_adapters, read_initialisation, tensor_names
from gora.adapters.merge_job import MergeJob
from gora.errors import GoraError
from gora.files import read_json, write_json
from gora.models.device import default_device
from gora.models.generation import trained_generation
from gora.models.probe import PROBE, probe_logits
from gora.models.source import find_model
from gora.models.stored_tensors import StoredTensor, row_pieces, write_again, written_bytes
from gora.models.streamed import stream_weights, streamable_model
from gora.models.whole import beside_weights
from gora.runtime.console import output
from gora.runtime.progress import Meter

_MEGABYTE = 10**6
_LEAVE_THE_BASE = ("True", "False", "gaussian", "orthogonal", "eva")


class StreamedMerge:
    """Adapters on a base whose every weight is one tensor of its files; see `Merge`.

    Args:
        job: what is merged.
        model: the base, with the adapters in memory and its own weights in their files.
        held: the tensor of every weight, by its name in the model without adapters.
        stored: all tensors of the files.
        expected: logits of base and adapters.
    """

    def __init__(
        self,
        job: MergeJob,
        model: PeftModel,
        held: dict[str, StoredTensor],
        stored: list[StoredTensor],
        expected: Tensor,
    ) -> None:
        self._job, self._model, self._held, self._stored, self.expected = job, model, held, stored, expected

    @classmethod
    def of(cls, job: MergeJob) -> StreamedMerge | None:
        """None where the base has to be loaded as a whole; see `streamable_model`.

        Raises:
            InputError: the base is another, or an adapter does not fit, or its file does not hold what its
                configuration says.
        """
        if job.tokens or not all(_is_beside(path) for path, _ in job.adapters):
            return None
        found = streamable_model(job.source, job.loaded)
        if found is None:
            return None
        model, held, stored = found
        stream_weights(model, held, job.loaded, default_device())
        wrapped = load_adapters(model, job.adapters).eval()
        job.check_base((name, tensor.read().to(job.loaded)) for name, tensor in held.items())
        expected = _probe(wrapped, job)
        # Some models read a weight in passing, out of its block's turn.
        return cls(job, wrapped, held, stored, expected) if expected.isfinite().all() else None

    @property
    def bytes(self) -> int:
        """Size of the merged model."""
        return written_bytes(self._stored, self._job.torch_dtype)

    def write(self, folder: Path) -> Mapping[str, str]:
        """Write the base's files with other weights, its other parts as they are; SHA-256 of the files with weights.

        Raises:
            GoraError: a value does not fit into the type.
        """
        folder.mkdir()
        dtype, loaded, device = self._job.torch_dtype, self._job.loaded, default_device()
        layers, biases = self._changes()

        def change(tensor: StoredTensor) -> Iterable[Tensor] | None:
            if tensor.name in layers:
                return folded_pieces(layers[tensor.name], tensor.read().to(device, loaded))
            if tensor.name in biases:
                return [biases[tensor.name](tensor.read().to(device, loaded))]
            if tensor.dtype.is_floating_point and tensor.dtype != dtype:
                return (piece.to(loaded) for piece in row_pieces(tensor.read()))
            return None

        total = sum(tensor.bytes for tensor in self._stored) // _MEGABYTE
        with Meter(output, "merging (MB)", total, quiet=total < 1000) as meter, ThreadPoolExecutor(1) as behind:
            digests: dict[str, Future[str]] = {}

            def finished(path: Path) -> None:
                digests[path.name] = behind.submit(_flushed_digest, path)

            try:
                write_again(
                    self._stored,
                    folder,
                    dtype,
                    change,
                    done=lambda size: meter.advance(steps=size // _MEGABYTE),
                    finished=finished,
                )
            except OverflowError as error:
                raise GoraError(f"The merged model is not kept: {error}. Give --dtype bfloat16.") from None
        _write_configuration(self._job, self._model.get_base_model(), folder)
        return {name: digest.result() for name, digest in digests.items()}

    def logits_of(self, folder: Path) -> Tensor:
        """See `Merge`; from the files that were written."""
        job = self._job
        source = find_model(job.settings.model_copy(update={"name": str(folder), "revision": None}))
        found = streamable_model(source, job.torch_dtype)
        if found is None:
            raise GoraError(f"{folder} does not hold the weights of the base model: it was not kept.")
        model, held, _ = found
        stream_weights(model, held, job.torch_dtype, default_device())
        return _probe(model, job)

    def _changes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is added to each weight, and what becomes of each bias, by its name in the files."""
        adapted = adapted_weights(self._model)
        own = dict(self._model.get_base_model().named_parameters())
        layers = {held.name: adapted[name] for name, held in self._held.items() if name in adapted}
        biases = {self._held[name].name: value for name, value in _biases(adapted, own) if name in self._held}
        if lost := sorted(adapted.keys() - self._held.keys()):
            raise GoraError(f"{lost[0]} is adapted, and its weight is not in the files of the base.")
        return layers, biases


def _probe(model: nn.Module, job: MergeJob) -> Tensor:
    # One text: every weight is read once.
    return probe_logits(model, job.processor, PROBE[-1:])


def _flushed_digest(path: Path) -> str:
    """Flush a file to the disk and take its SHA-256, while the next one is made."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return manifest.sha256_of(path)


def _is_beside(adapter: Path) -> bool:
    """Whether an adapter leaves the base's own weights alone, apart from biases, also while it is loaded."""
    own = [name for name in tensor_names(adapter) if "lora_" not in name and not name.endswith("bias")]
    return not own and str(read_initialisation(adapter)) in _LEAVE_THE_BASE


def _biases(adapted: Mapping[str, Any], own: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """How each bias that the adapter changes comes about: it is trained itself, or B adds to it."""
    for name, value in own.items():
        inner = ".".join(part for part in name.split(".") if part != "base_layer")
        if value.dim() == 1 and "lora_" not in inner and not value.isnan().all():
            yield inner, (lambda _, trained=value: trained.detach().float())
    for name, layer in adapted.items():
        if any(layer.lora_bias.values()):
            yield f"{name.removesuffix('weight')}bias", (lambda bias, layer=layer: folded_bias(layer, bias))


def _write_configuration(job: MergeJob, model: Any, folder: Path) -> None:
    """The base's own files beside its weights, with the new type and the token that was trained to end answers."""
    for name, path in beside_weights(job.source).items():
        (folder / name).write_bytes(path.read_bytes())
    document = read_json(folder / "config.json")
    _settle_dtype(document, job.dtype)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    settings = trained_generation(model, job.processor)
    if settings is not None:
        settings.save_pretrained(str(folder))
        inner = document if model.config.model_type == document.get("model_type") else document.get("text_config")
        (document if inner is None else inner)["eos_token_id"] = settings.eos_token_id
    write_json(folder / "config.json", document)


def _settle_dtype(document: dict[str, Any], name: str) -> None:
    document.pop("torch_dtype", None)
    document["dtype"] = name
    for value in document.values():
        if isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value):
            _settle_dtype(value, name)
