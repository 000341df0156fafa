"""The adapter's folder: PEFT's own files, the tokenizer or image processor, and a note on where it comes from."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from gora import __version__, manifest
from gora.disk import is_full
from gora.errors import GoraError
from gora.files import publish, write_json, write_text
from gora.models.fingerprint import adapter_parameter_names
from gora.models.generation import settle_generation, trained_generation
from gora.models.image_processor import Processor
from gora.models.sharding import gather
from gora.models.weight_files import WeightsNote
from gora.plan import Factors
from gora.runtime.console import output

ADAPTER_NOTE = "gora.json"
_WEIGHTS = "adapter_model.safetensors"
_CARD = "README.md"
"""Changes when the adapter is evaluated."""


@dataclass(frozen=True, kw_only=True)
class BaseNote:
    """The base model as it was in training.

    Attributes:
        dtype: type of its weights, or of those that were not quantised.
        quantization: how the others were, or None.
        fingerprint: of all weights as they were held, without a classifier's head.
        weights: those in its files, quantised or not; None in an adapter of a gora that did not note them.
        quantized_files: whether its files hold them quantised: the full weights are then in other files.
        labels: names of a classifier's labels, or None.
    """

    dtype: str
    quantization: str | None
    fingerprint: str
    weights: WeightsNote | None = None
    quantized_files: bool = False
    labels: tuple[str, ...] | None = None


def adapter_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """All values of the adapter, or what else is trained, whole and on the CPU.

    Where they are shared out, all processes have to ask together.
    """
    named, of_adapter = model.named_parameters(), adapter_parameter_names(model)
    return {name: gather(value).detach().cpu() for name, value in named if value.requires_grad or name in of_adapter}


def save_adapter(
    path: Path,
    model: PeftModel,
    processor: Processor,
    *,
    method: str,
    base: BaseNote,
    prompt_format: dict[str, Any],
    values: dict[str, torch.Tensor] | None = None,
    initial: Factors | None = None,
) -> None:
    """Publish the adapter folder after reading it back.

    Args:
        path: the folder.
        model: the wrapped model.
        processor: saved beside the adapter; a tokenizer with the chat template that was trained.
        method: the recipe's method.
        base: what the base model was before anything was done to it.
        prompt_format: how rows became text, for whoever asks the adapter something; see `describe_prompt_format`.
        values: see `adapter_values`.
        initial: A and B that took their part from the base weights at the start; see `converted`.

    Raises:
        GoraError: what was written is not what is in memory, or holds a B that is zero throughout.
    """
    values = adapter_values(model) if values is None else values
    note = {
        "gora_version": __version__,
        "method": method,
        "base_dtype": base.dtype,
        "base_quantization": base.quantization,
        "base_fingerprint": base.fingerprint,
        "base_weights": None if base.weights is None else asdict(base.weights),
        "base_files_quantized": base.quantized_files,
        "prompt_format": prompt_format,
    } | ({} if base.labels is None else {"labels": list(base.labels)})
    with publish(path, _bytes_of(values)) as aside:
        held = _write(aside, model, values, initial)
        processor.save_pretrained(str(aside))
        generation = trained_generation(model.get_base_model(), processor)  # type: ignore[arg-type]
        if generation is not None:
            generation.to_json_file(aside / "generation_config.json")
        write_json(aside / ADAPTER_NOTE, note)
        _check(load_file(aside / _WEIGHTS), held)
        manifest.seal(aside, unlisted=[_CARD])


def _bytes_of(values: dict[str, torch.Tensor]) -> int:
    return sum(value.nbytes for value in values.values())


def _write(
    aside: Path, model: PeftModel, values: dict[str, torch.Tensor], initial: Factors | None
) -> dict[str, torch.Tensor]:
    """PEFT's two files, by PEFT or, where it fails, without it; returns the tensors under the names in the file."""
    try:
        if initial is None:
            model.save_pretrained(str(aside), safe_serialization=True, save_embedding_layers=False, state_dict=values)
            return get_peft_model_state_dict(model, values)
        config, held = converted(model, values, initial)
        config.save_pretrained(str(aside))
    except Exception as error:  # no training is lost to a library's call at its end
        if is_full(error):
            raise
        output.warn(f"PEFT could not save the adapter ({type(error).__name__}: {error}); gora wrote its files itself.")
        config = model.peft_config["default"]
        held = {_saved_name(name): value.contiguous().clone() for name, value in values.items()}
        if initial is not None:
            config, held = _doubled(config, held, initial)
        aside.mkdir(exist_ok=True)
        _write_config(config, aside)
    save_file(held, aside / _WEIGHTS, metadata={"format": "pt"})
    return held


def _saved_name(name: str) -> str:
    """The name in PEFT's file of a value in the model: without the adapter's own name and the wrapper of a head."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")


def _write_config(config: PeftConfig, folder: Path) -> None:
    """PEFT's configuration as JSON, sets as lists; what JSON does not know is written as text."""
    document = {**config.to_dict(), "inference_mode": True}
    text = json.dumps(document, indent=2, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    write_text(folder / "adapter_config.json", text + "\n")


def save_values(path: Path, values: dict[str, torch.Tensor]) -> None:
    """Publish nothing but the trained values, by the names of their parameters, where all else has failed."""
    with publish(path, _bytes_of(values)) as aside:
        aside.mkdir()
        save_file({name: value.contiguous() for name, value in values.items()}, aside / "values.safetensors")
        manifest.seal(aside)


def save_whole(
    path: Path,
    model: PreTrainedModel,
    processor: Processor,
    dtype: torch.dtype,
    *,
    method: str,
    prompt_format: dict[str, Any],
) -> None:
    """Publish a model whose own weights were trained, in the type that its base had."""
    state = {name: value.detach().to(dtype) for name, value in model.state_dict().items()}
    # Tied weights are in the state twice, and in the file once.
    with publish(path, sum(value.numel() for value in model.parameters()) * dtype.itemsize) as aside:
        settle_generation(model, processor)
        model.save_pretrained(str(aside), safe_serialization=True, state_dict=state)
        processor.save_pretrained(str(aside))
        write_json(
            aside / ADAPTER_NOTE, {"gora_version": __version__, "method": method, "prompt_format": prompt_format}
        )
        manifest.seal(aside, unlisted=[_CARD])


def converted(
    model: PeftModel, values: dict[str, torch.Tensor], initial: Factors
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """A plain LoRA adapter of twice the rank, for the untouched base weights.

    Training saw W' = W - s B0 A0, and W' + s B A is W + s [B, -B0] [A; A0].

    Args:
        model: the wrapped model.
        values: see `adapter_values`.
        initial: A0 and B0 of every layer.

    Returns:
        PEFT's configuration and the tensors of its file.
    """
    return _doubled(model.peft_config["default"], get_peft_model_state_dict(model, values), initial)


def _doubled(
    config: PeftConfig, held: dict[str, torch.Tensor], initial: Factors
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors of a file of PEFT, with the initial factors beside those that were trained."""
    twice: Any = copy.deepcopy(config)
    twice.r, twice.lora_alpha, twice.inference_mode = 2 * twice.r, 2 * twice.lora_alpha, True
    twice.init_lora_weights, twice.lora_ga_config = True, None
    tensors = dict(held)
    for name, (first_a, first_b) in initial.items():
        a, b = (f"base_model.model.{name}.lora_{part}.weight" for part in "AB")
        tensors[a] = torch.cat([held[a], first_a])
        tensors[b] = torch.cat([held[b], -first_b], dim=1).contiguous()
    return twice, tensors


def _check(written: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> None:
    if written.keys() != held.keys():
        raise GoraError(f"The saved adapter holds {len(written)} tensors instead of {len(held)}.")
    differing = [name for name, tensor in held.items() if not torch.equal(written[name], tensor.detach().cpu())]
    if differing:
        raise GoraError(f"The saved adapter differs from the trained one in {', '.join(differing[:3])}.")
    factors_b = [tensor for name, tensor in written.items() if ".lora_B" in name]
    if factors_b and not any(tensor.any() for tensor in factors_b):
        raise GoraError("Every B of the trained adapter is zero: training has not changed anything.")
