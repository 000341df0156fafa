"""Folding an adapter into its base model, and comparing the two before the result appears."""

from __future__ import annotations

import gc
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora import manifest
from gora.adapters.base import other_base
from gora.adapters.destination import check_destination
from gora.adapters.load import (
    HEAD_KEY,
    find_adapter,
    first_of,
    is_classifier,
    load_adapter,
    read_base_note,
    read_config,
    tensor_names,
)
from gora.adapters.mergeable import incomplete_merge, unmergeable_base
from gora.adapters.new_tokens import fold_tokens, token_ids
from gora.adapters.save import ADAPTER_NOTE, BaseNote
from gora.data import padding_id
from gora.errors import GoraError, InputError
from gora.files import publish
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.generation import settle_generation
from gora.models.head import in_head, settle_padding
from gora.models.load import Source, default_device, find_model, load_model, load_tokenizer
from gora.models.new_tokens import embedding_rows
from gora.models.probe import PROBE, TOLERANCES, probe_logits
from gora.models.quantization import stored_quantization
from gora.models.weight_files import read_stored_weights
from gora.models.whole import not_loaded
from gora.recipe.schema import ModelSection
from gora.runs.owner import is_owned, owning
from gora.runtime.console import output
from gora.runtime.quiet import quiet_libraries

_PROBED_TOKENS = 16


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

    The base is loaded as it was in training; each merged weight is computed in float32 and rounded to `dtype`, once.

    Args:
        adapter: an adapter folder of PEFT, or a run folder that holds one.
        destination: the new folder.
        base: the base model; None is the one that the adapter names.
        dtype: `float32`, `bfloat16`, or `auto` for the type the base weights had in training.
        overwrite: replace an existing model folder; anything else is never replaced.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the adapter is damaged or no plain LoRA adapter, the base is not the one it was trained on, or the
            destination cannot be written.
        GoraError: the merged model does not compute what base and adapter compute.
    """
    quiet_libraries()
    adapter = find_adapter(adapter)
    config = read_config(adapter, with_tokens=True, with_experts=True)
    name = base or config.base_model_name_or_path
    if not name:
        raise InputError(f"{adapter} does not name its base model: give it with --base.")
    check_destination(destination, adapter, name, overwrite)
    job = _MergeJob.of(adapter, config, name, dtype, trust_remote_code)
    with output.terminal.status("merging"):
        merged, expected = _merge(job)
    needed = sum(value.nbytes for value in merged.parameters())
    writing = publish(destination, needed)
    with _owning_run_of(destination), writing as aside, output.terminal.status("writing and comparing"):
        settle_generation(merged, job.tokenizer)
        merged.save_pretrained(str(aside), safe_serialization=True)
        job.tokenizer.save_pretrained(str(aside))
        if (adapter / ADAPTER_NOTE).exists():
            # Whoever asks the merged model something needs the form that was trained.
            shutil.copyfile(adapter / ADAPTER_NOTE, aside / ADAPTER_NOTE)
        del merged
        gc.collect()
        found = _probe_folder(aside, job)
        result = Merged(destination, (found - expected).abs().max().item(), expected.abs().max().item())
        _refuse_wrong(result, job.tolerance)
        manifest.seal(aside)
    output.say(
        f"merged    {destination}: {job.dtype}; largest difference of a logit to the adapter "
        f"{result.largest_difference:.2g} (largest logit {result.largest_logit:.3g})"
    )
    return result


def _owning_run_of(destination: Path) -> AbstractContextManager[None]:
    """A merged model that is written into a run folder keeps other commands out of it."""
    folder = destination.parent
    return owning(folder, command="gora merge", option="--output") if is_owned(folder) else nullcontext()


@dataclass(frozen=True, kw_only=True)
class _MergeJob:
    """All that is known before the base model is loaded."""

    adapter: Path
    origin: BaseNote | None
    source: Source
    settings: ModelSection
    """The base, in the type it had in training."""
    dtype: str
    """Type of the merged weights."""
    tokenizer: PreTrainedTokenizerBase
    tokens: list[int]
    """Those whose embeddings the adapter holds."""

    @classmethod
    def of(cls, adapter: Path, config: PeftConfig, name: str, dtype: str, trust_remote_code: bool) -> _MergeJob:
        origin = read_base_note(adapter)
        # A broken file is named before anything is loaded.
        tensor_names(adapter)
        # The revision is one of the model that the adapter names.
        revision = config.revision if name == config.base_model_name_or_path else None
        settings = ModelSection(
            name=name, revision=revision, head="classification" if is_classifier(config) else "language"
        )
        labels = origin.labels if origin else None
        source = find_model(settings, labels=labels, trust_remote_code=trust_remote_code)
        if (stored := stored_quantization(source.config)) is not None:
            raise InputError(unmergeable_base(name, stored))
        if lost := not_loaded(source):
            raise InputError(f"{adapter} is not merged: {incomplete_merge(name, lost)}")
        loaded = origin.dtype if origin else _own_dtype(source)
        settings = settings.model_copy(update={"dtype": loaded})
        tokenizer = _find_tokenizer(adapter, settings, source)
        tokens = token_ids(config)
        if tokens and max(tokens) >= len(tokenizer):
            raise InputError(
                f"{adapter} holds the embedding of token {max(tokens):,}, but its tokenizer has {len(tokenizer):,} "
                "tokens. Put the tokenizer that it was trained with into its folder."
            )
        return cls(
            tokens=tokens,
            adapter=adapter,
            origin=origin,
            source=source,
            settings=settings,
            dtype=loaded if dtype == "auto" else dtype,
            tokenizer=tokenizer,
        )

    @property
    def tolerance(self) -> float:
        """Largest difference of a logit that rounding can explain, as a share of the largest logit."""
        exact = self.settings.dtype == self.dtype == "float32"
        return TOLERANCES["float32" if exact else "bfloat16"]


def _merge(job: _MergeJob) -> tuple[PreTrainedModel, Tensor]:
    model = load_model(job.settings, job.source, default_device())
    _check_base(model, job)
    settle_padding(model, padding_id(job.tokenizer, embedding_rows(model)))
    wrapped = load_adapter(model, job.adapter)
    _refuse_more_than_a_head(wrapped, job)
    expected = _probe(wrapped, job)
    if job.dtype == "float32":
        # Nothing is lost here, and `fold` then rounds nothing.
        wrapped.float()
    fold(wrapped)
    fold_tokens(wrapped)
    merged: PreTrainedModel = wrapped.unload()  # type: ignore[operator, assignment]
    nn.Module.to(merged, getattr(torch, job.dtype))
    return merged, expected


def _refuse_more_than_a_head(wrapped: PeftModel, job: _MergeJob) -> None:
    of_head = in_head(wrapped)
    names = [name for name, module in wrapped.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    if others := [name for name in names if not of_head(name)]:
        problems = first_of([f"{HEAD_KEY}: it holds {name} besides the head." for name in others])
        raise InputError(f"{job.adapter} is more than a plain LoRA adapter; gora cannot merge it.", problems)


def _check_base(model: PreTrainedModel, job: _MergeJob) -> None:
    """Refuse another base. The same weights may be stored in another type: those in memory then decide."""
    origin = job.origin
    if origin is None:
        return
    if origin.quantization:
        output.warn(
            f"the adapter was trained on a base in {origin.quantization}; it is merged into the full weights, "
            "which compute something slightly different."
        )
    if origin.weights is None or (origin.quantized_files and not job.source.quantized_files):
        # Nothing says which files hold the full weights of a base whose own files are quantised.
        changed = "" if origin.quantization else "the fingerprints differ"
    else:
        changed = read_stored_weights(job.source).changes_since(origin.weights)
    if not changed:
        return
    # What was held in training was not these weights if they were quantised there.
    if origin.quantization or weights_fingerprint(base_weights(model)) != origin.fingerprint:
        raise other_base(job.settings.name, job.adapter, changed, "Give that one with --base.")


@torch.no_grad()
def fold(wrapped: PeftModel) -> None:
    """Add scaling B A to every adapted base weight, in float32, rounded to the weight's type once."""
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.active_adapters:
                base: Any = layer.get_base_layer()
                weight: Any = getattr(base, layer.parameter_name) if isinstance(layer, ParamWrapper) else base.weight
                delta: Any = layer.get_delta_weight(name)  # type: ignore[operator]
                weight.copy_((weight.float() + delta.float()).to(weight.dtype))


def _probe(model: nn.Module, job: _MergeJob) -> Tensor:
    if not job.tokens:
        return probe_logits(model, job.tokenizer)
    told = " ".join(job.tokenizer.convert_ids_to_tokens(job.tokens[:_PROBED_TOKENS]))
    return probe_logits(model, job.tokenizer, (*PROBE, told))


def _probe_folder(path: Path, job: _MergeJob) -> Tensor:
    settings = job.settings.model_copy(update={"name": str(path), "revision": None, "dtype": job.dtype})
    source = find_model(settings, trust_remote_code=job.source.trust_remote_code)
    return _probe(load_model(settings, source, default_device()), job)


def _refuse_wrong(result: Merged, tolerance: float) -> None:
    if not result.largest_difference <= tolerance * result.largest_logit:
        raise GoraError(
            f"The merged model differs from base and adapter by {result.largest_difference:.3g} in a logit "
            f"(largest logit {result.largest_logit:.3g}): it was not kept."
        )


def _own_dtype(source: Source) -> str:
    return "bfloat16" if source.config.dtype == torch.bfloat16 else "float32"


def _find_tokenizer(adapter: Path, settings: ModelSection, source: Source) -> PreTrainedTokenizerBase:
    if (adapter / "tokenizer_config.json").is_file():
        settings = settings.model_copy(update={"tokenizer": str(adapter)})
    return load_tokenizer(settings, source)
