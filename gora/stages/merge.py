"""Folding an adapter into its base model, and comparing the two before the result appears."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gora.errors import GoraError, InputError
from gora.files import publish
from gora.models.load import Source, default_device, find_model, load_model, load_tokenizer
from gora.recipe.schema import ModelSection
from gora.runtime.console import output
from gora.runtime.quiet import quiet_libraries
from gora.training.adapter import NOTE

_PROBE = (
    "The sum of 17 and 25 is",
    "def median(values):\n    ordered = sorted(values)\n",
    "Once upon a time, in a town by the sea, there lived an old man who",
)
# Larger than any rounding of the weights can explain; a merge that is this far off has gone wrong.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Merged:
    """What the stage made."""

    path: Path
    largest_difference: float
    """Largest absolute difference of any logit between adapter and merged model."""
    largest_logit: float


def merge(
    adapter: Path,
    destination: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Merged:
    """Write base plus adapter as an ordinary model folder.

    Each merged weight is computed in float32 and then rounded to `dtype`, once.

    Args:
        adapter: an adapter folder of PEFT, or a run folder that holds one.
        destination: the new folder.
        base: the base model; None is the one that the adapter names.
        dtype: `float32`, `bfloat16`, or `auto` for the type the base weights had in training.
        overwrite: replace an existing folder.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the adapter or its base cannot be used, or the destination exists.
        GoraError: the merged model does not compute what base and adapter compute.
    """
    quiet_libraries()
    adapter = _find_adapter(adapter)
    if destination.exists() and not overwrite:
        raise InputError(f"{destination} exists. Add --overwrite to replace it, or give another --output.")
    config = _read_config(adapter)
    name = base or config.base_model_name_or_path
    if not name:
        raise InputError(f"{adapter} does not name its base model: give it with --base.")
    source = find_model(ModelSection(name=name), trust_remote_code=trust_remote_code)
    settings = ModelSection(name=name, dtype=_resolve_dtype(dtype, adapter, source))  # type: ignore[arg-type]
    tokenizer = _find_tokenizer(adapter, settings, source)
    with output.terminal.status("merging"):
        merged, wanted = _merge(settings, source, adapter, tokenizer)
    with publish(destination) as aside, output.terminal.status("writing and comparing"):
        merged.save_pretrained(str(aside), safe_serialization=True)
        tokenizer.save_pretrained(str(aside))
        del merged
        gc.collect()
        found = _probe_folder(aside, settings, tokenizer, trust_remote_code)
        result = Merged(destination, (found - wanted).abs().max().item(), wanted.abs().max().item())
        _refuse_wrong(result)
    output.say(
        f"merged    {destination}: {settings.dtype}; largest difference of a logit to the adapter "
        f"{result.largest_difference:.2g} (largest logit {result.largest_logit:.3g})"
    )
    return result


def _merge(
    settings: ModelSection, source: Source, adapter: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Tensor]:
    model = load_model(settings, source, default_device())
    wrapped = PeftModel.from_pretrained(model, str(adapter))
    wanted = probe_logits(wrapped, tokenizer)
    fold(wrapped)
    return wrapped.unload(), wanted  # type: ignore[return-value, operator]


@torch.no_grad()
def fold(wrapped: PeftModel) -> None:
    """Add scaling B A to every adapted base weight, in float32, rounded to the weight's type once."""
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.active_adapters:
                weight: Any = layer.get_base_layer().weight
                delta: Any = layer.get_delta_weight(name)  # type: ignore[operator]
                weight.copy_((weight.float() + delta.float()).to(weight.dtype))


@torch.no_grad()
def probe_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Logits for a few fixed texts, float32 on the CPU, one row a token."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for text in _PROBE:
        batch = tokenizer(text, return_tensors="pt").to(device)
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            arguments["labels"] = batch["input_ids"]
        rows.append(model(**arguments).logits[0].float().cpu())
    return torch.cat(rows)


def _probe_folder(path: Path, settings: ModelSection, tokenizer: PreTrainedTokenizerBase, trust: bool) -> Tensor:
    again = ModelSection(name=str(path), dtype=settings.dtype)
    return probe_logits(load_model(again, find_model(again, trust_remote_code=trust), default_device()), tokenizer)


def _refuse_wrong(result: Merged) -> None:
    if not result.largest_difference <= _TOLERANCE * result.largest_logit:
        raise GoraError(
            f"The merged model differs from base and adapter by {result.largest_difference:.3g} in a logit "
            f"(largest logit {result.largest_logit:.3g}): it was not kept."
        )


def _find_adapter(path: Path) -> Path:
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise InputError(f"{path} is no adapter: it holds no adapter_config.json, and no folder `adapter` that does.")


def _read_config(adapter: Path) -> PeftConfig:
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} cannot be read: {error}") from None
    if config.peft_type != "LORA":
        raise InputError(f"{adapter} is a {config.peft_type} adapter; only LoRA adapters can be merged.")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter} holds no adapter_model.safetensors.")
    return config


def _resolve_dtype(wanted: str, adapter: Path, source: Source) -> str:
    """`auto` is the type the base weights had in training; for an adapter of another tool, the base's own."""
    if wanted != "auto":
        return wanted
    note = adapter / NOTE
    if note.is_file():
        return str(json.loads(note.read_text(encoding="utf-8"))["base_dtype"])
    return "bfloat16" if source.config.dtype == torch.bfloat16 else "float32"


def _find_tokenizer(adapter: Path, settings: ModelSection, source: Source) -> PreTrainedTokenizerBase:
    if (adapter / "tokenizer_config.json").is_file():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(adapter))
        return tokenizer
    return load_tokenizer(settings, source)
