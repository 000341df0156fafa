"""Weights in 4 or 8 bits: by the recipe's wish, or because the checkpoint is stored that way."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from gora.errors import DISTRIBUTION, InputError, pip_extra
from gora.models.device import base_dtype
from gora.recipe.schema import ModelSection

_BITSANDBYTES = ("nf4", "fp4", "int8")
# Their layers are unpacked into ordinary weights while they are loaded.
_UNPACKED = ("fp8", "mxfp4", "compressed-tensors")
TRAINABLE = (*_BITSANDBYTES, *_UNPACKED)
"""Formats of layers that adapters can be trained on."""
_PACKAGES = {
    **dict.fromkeys(_BITSANDBYTES, ("bitsandbytes", f"'{DISTRIBUTION}[bitsandbytes]'")),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "aqlm": ("aqlm", "'aqlm[gpu,cpu]'"),
    "hqq": ("hqq", "hqq"),
    "eetq": ("kernels", "kernels"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
}
_PACKED = (
    "its layers hold packed numbers and no weight, of which ranks, initial values and checks are made. Name the model "
    f"in whole weights, with model.quantization: nf4 ({pip_extra('bitsandbytes')})."
)


class Configured(Protocol):
    """A model, or where one lies."""

    @property
    def config(self) -> PreTrainedConfig:
        """Its configuration, with `quantization_config` where the checkpoint is stored in fewer bits."""


def quantization_of(settings: ModelSection, source: Configured) -> str | None:
    """How the base's linear weights are held: `nf4`, `int8`, `gptq`, `fp8`, ...; None for whole ones.

    Args:
        settings: the recipe's section, which may ask for 4 or 8 bits.
        source: the checkpoint, which may be stored in them whatever the recipe says.
    """
    return stored_quantization(source.config) or settings.quantization


def stored_quantization(config: PreTrainedConfig) -> str | None:
    """The format that a checkpoint is stored in; None for whole weights."""
    stored = _stored(config)
    if stored is None:
        return None
    if stored.get("load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "fp4"))
    return "int8" if stored.get("load_in_8bit") else str(stored.get("quant_method") or "an unknown format")


def trainable(kind: str) -> bool:
    """Whether adapters can be trained on layers of that kind here."""
    return kind in TRAINABLE


def refuse_unreadable(settings: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse a base whose format needs a package that is not here, or contradicts the recipe.

    Raises:
        InputError: in one line, with the package to install.
    """
    stored = stored_quantization(config)
    wanted = settings.quantization
    if stored is not None and wanted is not None and stored != wanted:
        raise InputError(
            f"model.quantization: {wanted}, but model {settings.name!r} is stored in {stored} already. Leave it null, "
            "or name the model in whole weights."
        )
    kind = stored or wanted
    module, package = _PACKAGES.get(kind or "", (None, None))
    if module is None or _installed(module):
        return
    if stored is None:
        raise InputError(f"model.quantization: {kind} needs {module}: pip install {package}.")
    instead = "" if trainable(stored) else f" With it gora can evaluate the model and not train on it: {_PACKED}"
    raise InputError(
        f"model {settings.name!r} is stored in {stored}, which needs {package}: pip install {package}.{instead}"
    )


def refuse_untrainable_format(settings: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse a checkpoint whose layers no adapter can be trained on here; raises InputError."""
    stored = stored_quantization(config)
    if stored is not None and not trainable(stored):
        raise InputError(
            f"model {settings.name!r} is stored in {stored}, which gora cannot train on, whatever is installed: "
            f"{_PACKED}"
        )


def loading_arguments(
    settings: ModelSection, config: PreTrainedConfig, compute: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What `from_pretrained` has to be told so that the weights are held as `quantization_of` says."""
    stored = stored_quantization(config)
    if stored in _UNPACKED:
        unpacked = copy.deepcopy(config)
        unpacked.quantization_config = {**(_stored(config) or {}), "dequantize": True}
        return {"config": unpacked, "device_map": {"": device}}
    if stored is not None:
        return {"device_map": {"": device}}
    if settings.quantization is None:
        return {}
    return {"quantization_config": _bitsandbytes(settings.quantization, compute), "device_map": {"": device}}


def settle_unpacked(model: nn.Module, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Bring a model whose weights were unpacked while loading to one type; transformers leaves some in another."""
    if stored_quantization(config) not in _UNPACKED:
        return
    # In bfloat16 some models keep a few small weights in float32.
    whole = dtype == torch.float32
    for module in model.modules():
        if whole or isinstance(module, nn.Linear | nn.Embedding):
            nn.Module.to(module, dtype)


def weight_bytes(model: PreTrainedModel, settings: ModelSection, device: torch.device) -> int:
    """Bytes that the weights of a model will take in memory; the model itself may be empty."""
    width = torch.finfo(base_dtype(settings.dtype, device)).bits / 8
    kind = quantization_of(settings, model)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    packed = sum(module.weight.numel() for module in linear) if kind else 0
    rest = sum(parameter.numel() for parameter in model.parameters()) - packed
    return round(rest * width + packed * _bytes_per_weight(kind, width))


def _bytes_per_weight(kind: str | None, width: float) -> float:
    """Bytes that a weight of a linear layer takes.

    Args:
        kind: see `quantization_of`.
        width: bytes of a whole weight.
    """
    # 4 bits and a scale for every 64 of them, itself in 8 bits; or 8 bits.
    packed = {"nf4": 0.516, "fp4": 0.516, "int8": 1.0, "gptq": 0.55, "awq": 0.55}
    return packed.get(kind or "", width)


def _stored(config: PreTrainedConfig) -> dict[str, Any] | None:
    stored = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if stored is None:
        return None
    return dict(stored) if isinstance(stored, dict) else stored.to_dict()


def _bitsandbytes(kind: str, compute: torch.dtype) -> BitsAndBytesConfig:
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
