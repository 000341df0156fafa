"""Load a base model: with its weights, or its layers alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from gora.errors import InputError
from gora.models.attention import attention_kernel, has_flash, plain_attention
from gora.models.device import base_dtype
from gora.models.head import in_head
from gora.models.load_errors import explained
from gora.models.quantization import loading_arguments, quantization_of, settle_unpacked
from gora.models.source import Source
from gora.models.weight_files import tensor_shapes
from gora.models.zero_shot import hold_scalars
from gora.recipe.schema import ModelSection
from gora.runtime.console import output
from gora.runtime.out_of_memory import is_out_of_memory


def load_model(settings: ModelSection, source: Source, device: torch.device, *, seed: int = 0) -> PreTrainedModel:
    """Load the base model onto one device, frozen, in evaluation mode.

    Only safetensors weights are read.

    Args:
        settings: the recipe's section.
        source: what `find_model` found.
        device: where it goes.
        seed: draws what a checkpoint lacks of a classifier's head; the state of torch's generators is not touched.

    Raises:
        InputError: the weights are missing, or the attention kernel asked for cannot run.
    """
    dtype = base_dtype(settings.dtype, device)
    arguments = _arguments(settings, source, dtype, device)
    try:
        with _drawing_with(seed, device):
            loaded: Any = source.family.from_pretrained(
                source.path,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                # Those of the head aside, they are refused below, by name.
                ignore_mismatched_sizes=True,
                **arguments,
            )
        model, found = loaded
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise explained(settings.name, source.path, error) from None
    _refuse_invented_weights(settings.name, model, found)
    _name_what_is_not_loaded(source, found)
    model.requires_grad_(False)
    if source.head == "image-zero-shot":
        hold_scalars(model)
    if quantization_of(settings, source) is None:
        nn.Module.to(model, device)
    settle_unpacked(model, source.config, dtype)
    _keep_4bit_layout(model)
    return cast(PreTrainedModel, model.eval())


def empty_model(source: Source) -> PreTrainedModel:
    """The model's layers without memory for its weights (the meta device).

    Raises:
        InputError: transformers has no such model for this configuration, or cannot build it.
    """
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.asks_for_flash:
        arguments["attn_implementation"] = plain_attention(source)
    try:
        with torch.device("meta"):
            model = source.family.from_config(source.config, **arguments)
    except Exception as error:  # a configuration can be wrong in any way
        raise explained(source.path, source.path, error) from None
    return cast(PreTrainedModel, model)


def refuse_files_of_another_model(settings: ModelSection, source: Source) -> None:
    """Compare names and shapes in the weight files with the model of config.json; no value is read.

    Files that hold weights in few bits are not looked at: their format decides what they hold.

    Raises:
        InputError: a weight is missing or has another shape; as `load_model`.
    """
    if source.quantized_files:
        return
    model = empty_model(source)
    stored = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(source).items()}
    try:
        # Transformers renames, merges and splits tensors here as it does when it loads them.
        with _drawing_with(0, torch.device("cpu")):
            loaded: Any = type(model).from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                state_dict=stored,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception:  # a model that cannot be loaded without values is told of when it is loaded with them
        return
    _refuse_invented_weights(settings.name, *loaded)


def _arguments(settings: ModelSection, source: Source, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told of this model."""
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.revision is not None:
        arguments["revision"] = source.revision
    attention = attention_kernel(settings.attention, dtype, device, has_flash(source))
    if attention is None and source.asks_for_flash:
        # The checkpoint asks for what does not run here; transformers would fetch a kernel of the hub for it.
        attention = plain_attention(source)
    if attention is not None:
        arguments["attn_implementation"] = attention
    arguments |= loading_arguments(settings, source.config, dtype, device)
    if source.draws_head:
        # A head for other labels is drawn again.
        arguments["config"] = copy.deepcopy(source.config)
    return arguments


@contextmanager
def _drawing_with(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _refuse_invented_weights(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """Transformers fills weights that a checkpoint lacks with random values, and says so in a line at most.

    A classifier's head is meant to begin with such values.
    """
    of_head = in_head(model)
    missing = sorted(key for key in found.get("missing_keys", ()) if not of_head(key))
    wrong = sorted(map(_shapes, (key for key in found.get("mismatched_keys", ()) if not of_head(str(_first_of(key))))))
    if missing or wrong:
        problems = [f"{key} is missing" for key in missing[:5]] + wrong[:5]
        total = len(missing) + len(wrong)
        count = "1 weight" if total == 1 else f"{total} weights"
        raise InputError(
            f"model {name!r}: {count} of the checkpoint cannot be used. Its config.json and its weights are not of one "
            "model: download both again.",
            problems,
        )


def _name_what_is_not_loaded(source: Source, found: dict[str, Any]) -> None:
    """A checkpoint may hold more than the model that is loaded: towers, extra heads. A classifier's base does."""
    keys = sorted(map(str, found.get("unexpected_keys", ())))
    if keys and source.head == "language":
        parts = dict.fromkeys(".".join(key.split(".")[:2]) for key in keys)
        some = ", ".join(list(parts)[:3]) + (", ..." if len(parts) > 3 else "")
        output.warn_once(f"{len(keys)} tensors of the checkpoint are not loaded ({some}): the model has no such part.")


def _keep_4bit_layout(model: nn.Module) -> None:
    """On some CPUs a 4-bit layer reorders its weight at its first use, into a form that cannot be dequantised."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _shapes(key: Any) -> str:
    if isinstance(key, tuple) and len(key) == 3:
        name, stored, wanted = key
        return f"{name} is {tuple(stored)} in the checkpoint, and {tuple(wanted)} by config.json"
    return f"{_first_of(key)} has another shape"


def _first_of(key: Any) -> Any:
    """The name in what transformers reports of a weight of another shape: the name, or name and both shapes."""
    return key[0] if isinstance(key, tuple) else key
