"""What a merge is given: an adapter that can be folded, and a place that may be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

from peft import PeftConfig
from safetensors import SafetensorError, safe_open

from gora import assets
from gora.errors import InputError
from gora.training.adapter import NOTE, BaseNote

WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT under which an adapter is more than B A beside a weight.
HEAD_KEY = "modules_to_save"
_NOT_PLAIN = {
    "use_dora": "normalises the columns of the adapted weights (DoRA)",
    "lora_bias": "adds a bias to B",
    HEAD_KEY: "holds whole layers besides the low-rank ones",
    "target_parameters": "adapts parameters that are no layer's weight",
    "trainable_token_indices": "holds embeddings of single tokens",
    "layer_replication": "repeats layers of the base model",
    "alora_invocation_tokens": "acts only after certain tokens (aLoRA)",
    "use_qalora": "pools its input (QALoRA)",
    "use_bdlora": "has block-diagonal factors (BD-LoRA)",
    "arrow_config": "chooses between adapters for every token (Arrow)",
    "kasa_config": "changes the base weights (KaSA)",
    "monteclora_config": "draws its values at random (MonteCLoRA)",
}


def find_adapter(path: Path) -> Path:
    """The adapter folder: the path itself, or `adapter` in a run folder.

    Raises:
        InputError: neither is one.
    """
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise InputError(f"{path} is no adapter: it holds no adapter_config.json, and no folder `adapter` that does.")


def read_config(adapter: Path) -> PeftConfig:
    """PEFT's configuration of a plain LoRA adapter; that of a classifier may hold its head as well.

    Raises:
        InputError: it cannot be read, or is of an adapter that is more than B A beside a weight, with every reason.
    """
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} cannot be read: {error}") from None
    if config.peft_type != "LORA":
        raise InputError(f"{adapter} is a {config.peft_type} adapter; only LoRA adapters can be merged.")
    allowed = HEAD_KEY if is_classifier(config) else None
    reasons = [
        f"{key}: it {what}." for key, what in _NOT_PLAIN.items() if getattr(config, key, None) and key != allowed
    ]
    if (bias := getattr(config, "bias", "none")) != "none":
        reasons.append(f"bias: it holds trained biases ({bias}).")
    if reasons:
        raise InputError(f"{adapter} is more than a plain LoRA adapter; gora cannot merge it.", reasons)
    return config


def is_classifier(config: PeftConfig) -> bool:
    """Whether the adapter is of a model with a classification head."""
    return config.task_type == "SEQ_CLS"


def tensor_names(adapter: Path) -> set[str]:
    """Names of the tensors in the adapter's file.

    Raises:
        InputError: there is no such file, or it is broken.
    """
    path = adapter / WEIGHTS
    if not path.is_file():
        raise InputError(f"{adapter} holds no {WEIGHTS}.")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}).") from None


def read_origin(adapter: Path) -> BaseNote | None:
    """What gora noted beside the adapter; None for an adapter of another tool.

    Raises:
        InputError: the note cannot be read.
    """
    path = adapter / NOTE
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        dtype, fingerprint = note["base_dtype"], note["base_fingerprint"]
        labels = tuple(map(str, note["labels"])) if "labels" in note else None
        origin = BaseNote(dtype, note.get("base_quantization"), fingerprint, labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if origin.dtype not in ("float32", "bfloat16"):
        raise InputError(f"{path}: base_dtype {origin.dtype!r} is neither float32 nor bfloat16.")
    return origin


def check_destination(destination: Path, adapter: Path, base: str, overwrite: bool) -> None:
    """Refuse before anything is loaded what could not be written, or would delete what is not a merged model."""
    _refuse_overlap(destination, adapter, Path(assets.resolve(base, "models")))
    if not os.path.lexists(destination):
        nearest = next(parent for parent in destination.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise InputError(f"--output {destination}: {nearest} is a file.")
    elif destination.is_symlink() or not destination.is_dir():
        raise InputError(f"--output {destination} exists and is no folder but a file or a link.")
    elif not _is_model(destination):
        raise InputError(
            f"--output {destination} exists and is no model folder (config.json, but neither adapter nor plan), "
            "so it is never replaced. Give another --output."
        )
    elif not overwrite:
        raise InputError(f"{destination} exists. Add --overwrite to replace it, or give another --output.")


def _is_model(folder: Path) -> bool:
    others = ("adapter_config.json", "plan.safetensors")
    return (folder / "config.json").is_file() and not any((folder / name).exists() for name in others)


def _refuse_overlap(destination: Path, adapter: Path, base: Path) -> None:
    place = destination.resolve()
    for what, folder in (("adapter", adapter.resolve()), ("base model", base.resolve())):
        if folder.is_dir() and (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise InputError(f"--output {destination} is, contains or lies inside the folder of the {what}, {folder}.")
    if Path.cwd().is_relative_to(place):
        raise InputError(f"--output {destination} is the current folder or contains it.")
