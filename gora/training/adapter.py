"""The adapter's folder: PEFT's own files, the tokenizer, and a note on where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from gora import __version__
from gora.errors import GoraError
from gora.files import publish, write_json
from gora.models.sharding import whole

NOTE = "gora.json"


@dataclass(frozen=True)
class BaseNote:
    """The base model as it was in training.

    Attributes:
        dtype: type of its weights, or of those that were not quantised.
        quantization: how the others were, or None.
        fingerprint: of all weights as they were held.
    """

    dtype: str
    quantization: str | None
    fingerprint: str


def adapter_values(model: PeftModel) -> dict[str, torch.Tensor]:
    """All trained values, whole and on the CPU; where they are shared out, all processes have to ask together."""
    return {name: whole(value).detach().cpu() for name, value in model.named_parameters() if value.requires_grad}


def save_adapter(
    path: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    method: str,
    base: BaseNote,
    values: dict[str, torch.Tensor] | None = None,
) -> None:
    """Publish the adapter folder after reading it back.

    Args:
        path: the folder.
        model: the wrapped model.
        tokenizer: saved beside the adapter, with the chat template that was trained.
        method: the recipe's method.
        base: what the base model was during training.
        values: see `adapter_values`.

    Raises:
        GoraError: what was written is not what is in memory, or holds a B that is zero throughout.
    """
    values = adapter_values(model) if values is None else values
    with publish(path) as aside:
        model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False, state_dict=values)
        tokenizer.save_pretrained(str(aside))
        note = {
            "gora_version": __version__,
            "method": method,
            "base_dtype": base.dtype,
            "base_quantization": base.quantization,
            "base_fingerprint": base.fingerprint,
        }
        write_json(aside / NOTE, note)
        _check(load_file(aside / "adapter_model.safetensors"), get_peft_model_state_dict(model, values))


def _check(written: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> None:
    if written.keys() != held.keys():
        raise GoraError(f"The saved adapter holds {len(written)} tensors instead of {len(held)}.")
    differing = [name for name, tensor in held.items() if not torch.equal(written[name], tensor.detach().cpu())]
    if differing:
        raise GoraError(f"The saved adapter differs from the trained one in {', '.join(differing[:3])}.")
    factors_b = [tensor for name, tensor in written.items() if ".lora_B." in name]
    if not any(tensor.any() for tensor in factors_b):
        raise GoraError("Every B of the trained adapter is zero: training has not changed anything.")
