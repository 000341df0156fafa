"""Merging without loading: weights are read from the base's files one by one, and written one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gora.adapters.fold import adapted_weights, folded, folded_bias
from gora.adapters.load import load_adapters, read_initialisation, tensor_names
from gora.errors import GoraError
from gora.files import read_json, write_json
from gora.models.generation import trained_generation
from gora.models.load import Source, default_device
from gora.models.stored_tensors import StoredTensor, write_again, written_bytes
from gora.models.streamed import stream_weights, streamable_model
from gora.models.whole import beside_weights
from gora.runtime.console import output
from gora.runtime.progress import Meter

_MEGABYTE = 10**6
_LEAVE_THE_BASE = ("True", "False", "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True)
class StreamedMerge:
    """Adapters on a base whose every weight is one tensor of its files.

    Attributes:
        source: the base.
        model: it, with the adapters in memory and its own weights in their files.
        held: the tensor of every weight, by its name in the model without adapters.
        stored: all tensors of the files.
        loaded: type that the weights had in training.
    """

    source: Source
    model: PeftModel
    held: dict[str, StoredTensor]
    stored: list[StoredTensor]
    loaded: torch.dtype

    @classmethod
    def of(cls, source: Source, adapters: Sequence[tuple[Path, float]], loaded: torch.dtype) -> StreamedMerge | None:
        """None where the base has to be loaded as a whole; see `streamable_model`.

        Raises:
            InputError: an adapter does not fit, or its file does not hold what its configuration says.
        """
        found = streamable_model(source, loaded) if all(_is_beside(path) for path, _ in adapters) else None
        if found is None:
            return None
        model, held, stored = found
        device = default_device()
        stream_weights(model, held, loaded, device)
        wrapped = load_adapters(model, adapters).eval()
        return cls(source=source, model=wrapped, held=held, stored=stored, loaded=loaded)

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every weight of the base, as they were in training."""
        for name, tensor in self.held.items():
            yield name, tensor.read().to(self.loaded)

    def bytes(self, dtype: torch.dtype) -> int:
        """Size of the merged model."""
        return written_bytes(self.stored, dtype)

    def write(self, folder: Path, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the merged model: the base's files with other weights, its other parts as they are.

        Raises:
            GoraError: a value does not fit into the type.
        """
        folder.mkdir()
        adapted = adapted_weights(self.model)
        own = dict(self.model.get_base_model().named_parameters())
        layers = {held.name: adapted[name] for name, held in self.held.items() if name in adapted}
        biases = {self.held[name].name: value for name, value in _biases(adapted, own) if name in self.held}
        if lost := sorted(adapted.keys() - self.held.keys()):
            raise GoraError(f"{lost[0]} is adapted, and its weight is not in the files of the base.")
        device = default_device()

        def change(tensor: StoredTensor) -> Tensor | None:
            if tensor.name in layers:
                return folded(layers[tensor.name], tensor.read().to(device, self.loaded))
            if tensor.name in biases:
                return biases[tensor.name](tensor.read().to(device, self.loaded))
            if tensor.dtype.is_floating_point and tensor.dtype != dtype:
                return tensor.read().to(self.loaded)
            return None

        total = sum(tensor.bytes for tensor in self.stored) // _MEGABYTE
        with Meter(output, "merging (MB)", total, quiet=total < 1000) as meter:
            try:
                write_again(self.stored, folder, dtype, change, lambda size: meter.advance(steps=size // _MEGABYTE))
            except OverflowError as error:
                raise GoraError(f"The merged model is not kept: {error}. Give --dtype bfloat16.") from None
        _write_configuration(self.source, self.model.get_base_model(), tokenizer, dtype, folder)


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


def _write_configuration(
    source: Source, model: Any, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, folder: Path
) -> None:
    """The base's own files beside its weights, with the new type and the token that was trained to end answers."""
    for name, path in beside_weights(source).items():
        (folder / name).write_bytes(path.read_bytes())
    document = read_json(folder / "config.json")
    _settle_dtype(document, str(dtype).removeprefix("torch."))
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    settings = trained_generation(model, tokenizer)
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
