"""An adapter's folder: what its files say, whether they are whole, and the adapter itself round its base model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from gora import manifest
from gora.adapters.hub import fetch_adapter, may_be_on_hub
from gora.adapters.new_tokens import KEY as TOKENS_KEY
from gora.adapters.new_tokens import make_room
from gora.adapters.save import ADAPTER_NOTE, BaseNote
from gora.errors import InputError
from gora.files import read_json
from gora.models.head import head_modules, train_head
from gora.models.new_tokens import embedding_rows
from gora.models.vision import head_for
from gora.models.weight_files import WeightsNote
from gora.recipe.schema import Head
from gora.runtime.console import output

WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT under which an adapter is more than B A beside a weight.
HEAD_KEY = "modules_to_save"
_EXPERTS_KEY = "target_parameters"
_NOT_PLAIN = {
    "use_dora": "normalises the columns of the adapted weights (DoRA)",
    "lora_bias": "adds a bias to B",
    HEAD_KEY: "holds whole layers besides the low-rank ones",
    _EXPERTS_KEY: "adapts parameters that are no layer's weight (fused experts)",
    TOKENS_KEY: "holds embeddings of single tokens",
    "layer_replication": "repeats layers of the base model",
    "alora_invocation_tokens": "acts only after certain tokens (aLoRA)",
    "use_qalora": "pools its input (QALoRA)",
    "use_bdlora": "has block-diagonal factors (BD-LoRA)",
    "arrow_config": "chooses between adapters for every token (Arrow)",
    "kasa_config": "changes the base weights (KaSA)",
    "monteclora_config": "draws its values at random (MonteCLoRA)",
}


_WITHOUT_ADAPTER = {
    False: "{} is a run that has no adapter yet. Finish it with `gora run --resume`.",
    True: "{0} is a run that trained whole weights: {0}/model is a model already, and there is no adapter.",
}


def find_adapter(path: Path | str) -> Path:
    """The adapter folder: the path itself, or `adapter` in a run folder; else that of an adapter on the hub.

    Raises:
        InputError: none of them is one, or a file in it is damaged.
    """
    name, path = str(path), Path(path).expanduser()
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file() or manifest.is_sealed(folder):
            verify_files(folder)
            return folder
    if may_be_on_hub(name):
        folder = fetch_adapter(name)
        verify_files(folder)
        return folder
    if (path / "recipe.yaml").is_file():
        raise InputError(_WITHOUT_ADAPTER[(path / "model").is_dir()].format(path))
    raise InputError(f"{path} is not an adapter folder: no adapter_config.json in it or in {path / 'adapter'}.")


def verify_files(folder: Path) -> None:
    """Compare the files of an adapter or model with its manifest; those of other tools have none.

    Raises:
        InputError: a file is missing or was changed after it was written.
    """
    if manifest.is_sealed(folder):
        manifest.verify(folder, "Restore the file, or make the folder again.")
    elif (folder / ADAPTER_NOTE).exists():
        output.warn_once(f"{folder} has no {manifest.NAME}: its files cannot be verified.")


def read_config(
    adapter: Path, *, with_tokens: bool = False, with_experts: bool = False, foldable: bool = False
) -> PeftConfig:
    """PEFT's configuration of a plain LoRA adapter; that of a classifier may hold its head as well.

    Args:
        adapter: its folder.
        with_tokens: let it also hold embeddings of single tokens.
        with_experts: let it also adapt fused experts.
        foldable: let it also be one of DoRA, or hold biases.

    Raises:
        InputError: it cannot be read, or is of an adapter that is more than B A beside a weight, with every reason.
    """
    config = _config(adapter)
    if config.peft_type != "LORA":
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise InputError(f"{adapter} is a {kind} adapter; only LoRA adapters can be merged.")
    allowed = {HEAD_KEY} if head_of(config) in ("classification", "image-classification") else set()
    allowed |= {TOKENS_KEY} if with_tokens else set()
    allowed |= {_EXPERTS_KEY} if with_experts else set()
    allowed |= {"use_dora", "lora_bias", "bias"} if foldable else set()
    reasons = [
        f"{key}: it {what}." for key, what in _NOT_PLAIN.items() if getattr(config, key, None) and key not in allowed
    ]
    if (bias := getattr(config, "bias", "none")) != "none" and "bias" not in allowed:
        reasons.append(f"bias: it holds trained biases ({bias}).")
    if reasons:
        raise InputError(f"{adapter} is more than a plain LoRA adapter; gora cannot merge it.", reasons)
    return config


def _config(adapter: Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(adapter))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} cannot be read: {error}") from None


def read_initialisation(adapter: Path) -> str | bool:
    """How PEFT draws A and B of such an adapter; some ways change the base's weights, also when it is loaded."""
    settings: Any = _config(adapter)
    initialisation: str | bool = settings.init_lora_weights
    return initialisation


def head_of(config: PeftConfig) -> Head:
    """What the model of an adapter has on top."""
    if config.task_type == "SEQ_CLS":
        return "classification"
    base_class = str((getattr(config, "auto_mapping", None) or {}).get("base_model_class", ""))
    return head_for(base_class) or "language"


def tensor_names(adapter: Path) -> set[str]:
    """Names of the tensors in the adapter's file.

    Raises:
        InputError: there is no such file, or it is broken.
    """
    path = adapter / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{adapter} is not an adapter: it holds no {WEIGHTS}. Give a run's folder, or that of an adapter."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}).") from None


def read_base_note(adapter: Path) -> BaseNote | None:
    """What gora noted beside the adapter; None for an adapter of another tool.

    Raises:
        InputError: the note cannot be read.
    """
    path = adapter / ADAPTER_NOTE
    if not path.exists():
        return None
    try:
        note = read_json(path)
        weights = note.get("base_weights")
        note = BaseNote(
            dtype=note["base_dtype"],
            quantization=note.get("base_quantization"),
            fingerprint=note["base_fingerprint"],
            weights=None if weights is None else WeightsNote(**weights),
            quantized_files=bool(note.get("base_files_quantized")),
            labels=tuple(map(str, note["labels"])) if "labels" in note else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if note.dtype not in ("float32", "bfloat16"):
        raise InputError(f"{path}: base_dtype {note.dtype!r} is neither float32 nor bfloat16.")
    return note


def load_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Put an adapter round its base model, in evaluation mode; all of it, and nothing else.

    A model that lacks embeddings for the adapter's new tokens grows them.

    Raises:
        InputError: it does not fit the model, or its file does not hold what its configuration says.
    """
    return load_adapters(model, [(adapter, 1.0)])


def load_adapters(model: PreTrainedModel, adapters: Sequence[tuple[Path, float]]) -> PeftModel:
    """Put several adapters round a model, all active, each with a factor on its scaling; see `load_adapter`."""
    for module in head_modules(model).values():
        # The adapter's head is float32, and PEFT loads it in the type of the base's.
        module.float()
    (first, _), *others = adapters
    make_room(model, _config(first))
    with _fitting(first):
        wrapped = PeftModel.from_pretrained(model, str(first))
    for number, (adapter, _) in enumerate(others, 1):
        with _fitting(adapter):
            wrapped.load_adapter(str(adapter), _name_of(number))
    for number, (adapter, weight) in enumerate(adapters):
        _check_tensors(wrapped, adapter, _name_of(number))
        _check_values(wrapped, adapter, _name_of(number))
        for layer in wrapped.modules():
            if isinstance(layer, LoraLayer) and _name_of(number) in layer.scaling:
                layer.scaling[_name_of(number)] *= weight
    if others:
        wrapped.base_model.set_adapter([_name_of(number) for number in range(len(adapters))])  # type: ignore[operator]
        wrapped.requires_grad_(False)
    train_head(wrapped)
    return wrapped


def _name_of(number: int) -> str:
    return f"default_{number}" if number else "default"


@contextmanager
def _fitting(adapter: Path) -> Iterator[None]:
    """Errors of PEFT about an adapter that does not fit its model, in gora's words."""
    with warnings.catch_warnings():
        # What PEFT warns of is an error here.
        warnings.simplefilter("ignore")
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
                raise
            lines = str(error).splitlines()
            problems = [line.strip() for line in lines if "size mismatch" in line] or lines
            raise InputError(f"{adapter} does not fit the base model.", first_of(problems)) from None
        except KeyError as missing:
            # PEFT looks for whole layers by name, before it compares anything.
            raise _not_as_said(adapter, [f"{missing.args[0]} is missing."]) from None


def _check_tensors(wrapped: PeftModel, adapter: Path, name: str) -> None:
    held = tensor_names(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        needed = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False).keys()
        # PEFT keeps an embedding beside the adapter where it is adapted or has grown, and loads it into the base.
        has_embeddings = embedding_rows(wrapped.get_base_model()) is not None
        known = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=has_embeddings).keys()
    problems = first_of([f"{name} is missing." for name in sorted(needed - held)])
    problems += first_of([f"{name} belongs to no adapted layer." for name in sorted(held - known)])
    if problems:
        raise _not_as_said(adapter, problems)


def _check_values(wrapped: PeftModel, adapter: Path, name: str) -> None:
    """Compare what is in memory with the file: what PEFT renames while it loads may be lost on the way."""
    loaded = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    held = load_file(adapter / WEIGHTS)
    lost = [name for name in loaded.keys() & held.keys() if not _is_loaded(loaded[name], held[name])]
    if lost:
        problems = first_of(f"{name} is not in the model as it is in the file." for name in sorted(lost))
        raise InputError(f"{adapter} is not loaded by PEFT as it was saved: train other layers.", problems)


def _is_loaded(value: Tensor, held: Tensor) -> bool:
    # AdaLoRA keeps rows in memory that its file lacks.
    return value.shape != held.shape or torch.allclose(
        value.detach().cpu(), held.to(value.dtype), rtol=0, atol=0, equal_nan=True
    )


def _not_as_said(adapter: Path, problems: list[str]) -> InputError:
    path = adapter / WEIGHTS
    return InputError(f"{path} does not hold the adapter that its adapter_config.json says.", problems)


def first_of(problems: Iterable[str], shown: int = 3) -> list[str]:
    """The first few of many problems, and how many there are more."""
    problems = list(problems)
    more = len(problems) - shown
    return problems[:shown] + ([f"and {more} more like these."] if more > 0 else [])
