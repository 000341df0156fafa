"""Fingerprints that tell whether a model is the one that was seen before."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from gora.models.head import in_head

_NOT_ARCHITECTURE = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_AT_A_TIME = 16
_PEFT_PREFIX = "base_model.model."


def config_fingerprint(config: PreTrainedConfig) -> str:
    """SHA-256 of the settings that differ from their class's defaults; names, versions and data types do not count."""
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_ARCHITECTURE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and values, independent of order, device and of a lossless change of data type.

    A float32 tensor whose values all fit bfloat16 counts as that bfloat16 tensor, so that a checkpoint stored in
    bfloat16 has one fingerprint in whichever of the two it is loaded.
    """
    digests: list[str] = []
    tensors = iter(tensors)
    with ThreadPoolExecutor() as pool:
        # A few at a time: a tensor may have been gathered for the occasion.
        while some := list(islice(tensors, _AT_A_TIME)):
            digests += pool.map(_digest, some)
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight of the base model, wrapped by PEFT or not.

    Those of adapters are skipped, and those of a classifier's head, which is drawn at random and trained.
    """
    of_head, of_adapter = in_head(model), adapter_parameter_names(model)
    for name, parameter in model.named_parameters():
        if name not in of_adapter and not of_head(name):
            yield _own_name(name), parameter


def _own_name(name: str) -> str:
    """A base weight's name without what PEFT puts in: a prefix, and one `base_layer` for each wrapper round it."""
    parts = name.removeprefix(_PEFT_PREFIX).split(".")
    return ".".join(part for part in parts if part != "base_layer")


def adapter_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that PEFT has put beside the base weights: all of an adapted layer but its base layer."""
    return {
        f"{layer}.{name}"
        for layer, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        for name, _ in module.named_parameters()  # type: ignore[attr-defined]
        if not name.startswith("base_layer.")
    }


def _digest(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    values = tensor.detach()
    if values.dtype == torch.float32:
        short = values.bfloat16()
        values = short if torch.equal(short.float(), values) else values
    content = values.reshape(-1).contiguous().view(torch.uint8).cpu().numpy()
    header = f"{name} {tuple(values.shape)} {values.dtype} "
    return header + hashlib.sha256(content.data).hexdigest()
