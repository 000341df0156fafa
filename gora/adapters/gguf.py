"""An adapter as one GGUF file, as `convert_lora_to_gguf.py` of llama.cpp writes it, for the families known here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from gora.adapters.forms import LoraTensors
from gora.errors import GoraError, InputError, pip_extra

FILE = "adapter.gguf"


@dataclass(frozen=True)
class _Family:
    """How llama.cpp holds a class of models.

    Attributes:
        architecture: llama.cpp's name of it.
        pairwise: whether rotary positions turn neighbouring rows of q and k, where transformers turns the halves.
    """

    architecture: str
    pairwise: bool = False


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", pairwise=True),
    "MistralForCausalLM": _Family("llama", pairwise=True),
    "Qwen2ForCausalLM": _Family("qwen2"),
    "Qwen3ForCausalLM": _Family("qwen3"),
    "GemmaForCausalLM": _Family("gemma"),
    "Gemma2ForCausalLM": _Family("gemma2"),
    "Gemma3ForCausalLM": _Family("gemma3"),
    "Phi3ForCausalLM": _Family("phi3"),
    "Olmo2ForCausalLM": _Family("olmo2"),
}


def family_known(config: PreTrainedConfig) -> bool:
    """Whether `write_gguf` knows how llama.cpp holds this base model."""
    return _family(config) is not None


def require_gguf() -> None:
    """Raises InputError where the package that writes the format is not installed."""
    if find_spec("gguf") is None:
        raise InputError(f"GGUF files are written by the package gguf: {pip_extra('gguf')}.")


def write_gguf(lora: LoraTensors, config: PreTrainedConfig, path: Path) -> None:
    """Write an adapter as GGUF, and read it back.

    llama.cpp multiplies B A with `adapter.lora.alpha` over the rank of each tensor.

    Args:
        lora: in the compact form.
        config: of the base model, of a known family.
        path: the new file; float32.

    Raises:
        InputError: a layer of the adapter has no name in llama.cpp.
        GoraError: the file does not hold the adapter.
    """
    import gguf

    tensors = _named_tensors(lora, config)
    family = _family(config)
    assert family is not None
    writer = gguf.GGUFWriter(str(path), family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.config.lora_alpha))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(path, tensors, float(lora.config.lora_alpha))


def _check(path: Path, tensors: Mapping[str, Tensor], alpha: float) -> None:
    import gguf

    reader = gguf.GGUFReader(str(path))
    held = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    field: Any = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    same = held.keys() == tensors.keys() and all(torch.equal(held[name], value) for name, value in tensors.items())
    if not same or field is None or field.contents() != alpha:
        raise GoraError(f"{path} does not hold the adapter that was written into it.")


def _named_tensors(lora: LoraTensors, config: PreTrainedConfig) -> dict[str, Tensor]:
    import gguf

    family = _family(config)
    if family is None:
        raise InputError(f"{config.architectures}: gora does not know how llama.cpp holds this model.")
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    known = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    named: dict[str, Tensor] = {}
    for layer, (a, b) in lora.pairs.items():
        name = known.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if name is None:
            raise InputError(f"{layer}: llama.cpp has no such layer in a model of the kind {family.architecture}.")
        if family.pairwise and layer.endswith(("q_proj", "k_proj")):
            key = "num_attention_heads" if layer.endswith("q_proj") else "num_key_value_heads"
            b = _neighbouring(b, getattr(config, key))
        named |= {f"{name}.lora_a": a.float().contiguous(), f"{name}.lora_b": b.float().contiguous()}
    return named


def _neighbouring(b: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order in which llama.cpp turns them: the two of a pair beside each other."""
    return b.reshape(heads, 2, len(b) // heads // 2, -1).swapaxes(1, 2).reshape(b.shape).contiguous()


def _family(config: PreTrainedConfig) -> _Family | None:
    return next((_FAMILIES[name] for name in config.architectures or () if name in _FAMILIES), None)
