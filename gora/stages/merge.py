"""Folding an adapter into its base model, and comparing the two before the result appears."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora import manifest
from gora.adapters.base import other_base
from gora.adapters.destination import check_destination
from gora.adapters.fold import fold
from gora.adapters.load import (
    HEAD_KEY,
    find_adapter,
    first_of,
    is_classifier,
    load_adapters,
    read_base_note,
    read_config,
    tensor_names,
)
from gora.adapters.mergeable import incomplete_merge, unmergeable_base, unsteady_merge
from gora.adapters.new_tokens import fold_tokens, token_ids
from gora.adapters.save import ADAPTER_NOTE, BaseNote
from gora.adapters.serving import model_commands
from gora.adapters.streamed_merge import StreamedMerge
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
from gora.models.streamed import changes_weights, stream_weights, streamable_model
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
    adapter: Path | Sequence[tuple[Path, float]],
    destination: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Merged:
    """Write base plus adapter as an ordinary model folder.

    Each merged weight is computed in float32 and rounded to `dtype`, once. Weights are read and written one by one; a
    base whose weights transformers converts, a classifier and new tokens are loaded as a whole.

    Args:
        adapter: an adapter folder of PEFT, or a run folder that holds one; or several of one base, each with the factor
            on its update.
        destination: the new folder.
        base: the base model; None is the one that the adapter names.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the type the base weights had in training.
        overwrite: replace an existing model folder; anything else is never replaced.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the adapter is damaged or cannot be folded into a weight, the base is not the one it was trained on,
            or the destination cannot be written.
        GoraError: the merged model does not compute what base and adapter compute.
    """
    quiet_libraries()
    weighted = [(adapter, 1.0)] if isinstance(adapter, Path) else list(adapter)
    adapters = [(find_adapter(path), weight) for path, weight in weighted]
    configs = [read_config(path, with_tokens=True, with_experts=True, foldable=True) for path, _ in adapters]
    name = base or configs[0].base_model_name_or_path
    if not name:
        raise InputError(f"{adapters[0][0]} does not name its base model: give it with --base.")
    for path, _ in adapters:
        check_destination(destination, path, name, overwrite)
    _refuse_several(adapters, configs)
    job = _MergeJob.of(adapters, configs[0], name, dtype, trust_remote_code)
    with output.terminal.status("merging"):
        merged, expected = _streamed(job) or _merge(job)
    writing = publish(destination, _bytes_of(merged, job))
    with _owning_run_of(destination), writing as aside, output.terminal.status("writing and comparing"):
        streamed = isinstance(merged, StreamedMerge)
        if isinstance(merged, StreamedMerge):
            merged.write(aside, job.torch_dtype, job.tokenizer)
        else:
            settle_generation(merged, job.tokenizer)
            merged.save_pretrained(str(aside), safe_serialization=True)
        job.tokenizer.save_pretrained(str(aside))
        if (job.adapter / ADAPTER_NOTE).exists():
            # Whoever asks the merged model something needs the form that was trained.
            shutil.copyfile(job.adapter / ADAPTER_NOTE, aside / ADAPTER_NOTE)
        del merged
        gc.collect()
        found = _probe_written(aside, job) if streamed else _probe_folder(aside, job)
        result = Merged(destination, (found - expected).abs().max().item(), expected.abs().max().item())
        _refuse_wrong(result, job.tolerance)
        manifest.seal(aside)
    output.say(
        f"merged    {destination}: {job.dtype}; largest difference of a logit to the adapter "
        f"{result.largest_difference:.2g} (largest logit {result.largest_logit:.3g})"
    )
    if job.source.causal:
        output.say("\n".join(f"serve     {command}" for command in model_commands(destination)))
    return result


def weighted_adapters(adapter: Path | None, weighted: Sequence[str]) -> Path | list[tuple[Path, float]]:
    """What the command line names: one adapter, or several as `PATH=WEIGHT`.

    Raises:
        InputError: neither or both, or a weight that is not a number.
    """
    if (adapter is None) == (not weighted):
        raise InputError("Give one ADAPTER, or --adapter PATH=WEIGHT for each of several.")
    if adapter is not None:
        return adapter
    found, problems = [], []
    for text in weighted:
        path, _, weight = text.rpartition("=")
        try:
            found.append((Path(path), float(weight)))
        except ValueError:
            problems.append(f"{text}: not PATH=WEIGHT, such as runs/a/adapter=0.7.")
            continue
        if not path or not math.isfinite(found[-1][1]) or not found[-1][1]:
            problems.append(f"{text}: needs a path, and a weight that is a number other than 0.")
    if problems:
        raise InputError("--adapter:", problems)
    return found


def _refuse_several(adapters: Sequence[tuple[Path, float]], configs: Sequence[PeftConfig]) -> None:
    """Several adapters are folded together where each is B A beside a weight of the same base."""
    if len(adapters) == 1 and adapters[0][1] == 1.0:
        return
    problems = []
    for (path, _), config in zip(adapters, configs, strict=True):
        settings: Any = config
        if settings.base_model_name_or_path != configs[0].base_model_name_or_path:
            problems.append(f"{path} is of another base: {settings.base_model_name_or_path}.")
        more = [key for key in ("use_dora", "lora_bias", "modules_to_save") if getattr(settings, key, None)]
        more += ["bias"] if settings.bias != "none" else []
        more += ["trainable_token_indices"] if token_ids(config) else []
        problems += [f"{path}: {key}: it is more than a plain LoRA adapter." for key in more]
    if problems:
        raise InputError("--adapter: these adapters cannot be merged with weights.", problems)


def _owning_run_of(destination: Path) -> AbstractContextManager[None]:
    """A merged model that is written into a run folder keeps other commands out of it."""
    folder = destination.parent
    return owning(folder, command="gora merge", option="--output") if is_owned(folder) else nullcontext()


@dataclass(frozen=True, kw_only=True)
class _MergeJob:
    """All that is known before the base model is loaded."""

    adapters: Sequence[tuple[Path, float]]
    """Each with the factor on its update."""
    origins: Sequence[BaseNote | None]
    source: Source
    settings: ModelSection
    """The base, in the type it had in training."""
    dtype: str
    """Type of the merged weights."""
    tokenizer: PreTrainedTokenizerBase
    tokens: list[int]
    """Those whose embeddings the adapter holds."""

    @classmethod
    def of(
        cls,
        adapters: Sequence[tuple[Path, float]],
        config: PeftConfig,
        name: str,
        dtype: str,
        trust_remote_code: bool,
    ) -> _MergeJob:
        adapter = adapters[0][0]
        origins = [read_base_note(path) for path, _ in adapters]
        origin = origins[0]
        # A broken file is named before anything is loaded.
        for path, _ in adapters:
            tensor_names(path)
        # The revision is one of the model that the adapter names.
        revision = config.revision if name == config.base_model_name_or_path else None
        settings = ModelSection(
            name=name, revision=revision, head="classification" if is_classifier(config) else "language"
        )
        labels = origin.labels if origin else None
        source = find_model(settings, labels=labels, trust_remote_code=trust_remote_code)
        if (stored := stored_quantization(source.config)) is not None:
            raise InputError(unmergeable_base(name, stored))
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
            adapters=adapters,
            origins=origins,
            source=source,
            settings=settings,
            dtype=loaded if dtype == "auto" else dtype,
            tokenizer=tokenizer,
        )

    @property
    def adapter(self) -> Path:
        """The first of the adapters, whose tokenizer and prompt format the merged model gets."""
        return self.adapters[0][0]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the merged weights."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def tolerance(self) -> float:
        """Largest difference of a logit that rounding can explain, as a share of the largest logit."""
        exact = self.settings.dtype == self.dtype == "float32"
        return TOLERANCES["float32" if exact else "bfloat16"]


def _streamed(job: _MergeJob) -> tuple[StreamedMerge, Tensor] | None:
    """The way that needs no whole model in memory, and the logits of base and adapter; None where there is none.

    Raises:
        InputError: there is none, and the model in memory would lack parts of the checkpoint; the base is another, or
            changes its weights while it runs.
    """
    if changes_weights(job.source):
        raise InputError(f"{job.adapter} is not merged: {unsteady_merge(job.settings.name)}")
    found = None if job.tokens else StreamedMerge.of(job.source, job.adapters, getattr(torch, job.settings.dtype))
    if found is not None:
        for origin, (adapter, _) in zip(job.origins, job.adapters, strict=True):
            _check_base(origin, adapter, found.base_weights(), job)
        logits = _probe_streamed(found.model, job)
        # Some models read a weight in passing, out of its block's turn.
        if logits.isfinite().all():
            return found, logits
    if lost := not_loaded(job.source):
        raise InputError(f"{job.adapter} is not merged: {incomplete_merge(job.settings.name, lost)}")
    return None


def _bytes_of(merged: StreamedMerge | PreTrainedModel, job: _MergeJob) -> int:
    if isinstance(merged, StreamedMerge):
        return merged.bytes(job.torch_dtype)
    return sum(value.nbytes for value in merged.parameters())


def _probe_streamed(model: nn.Module, job: _MergeJob) -> Tensor:
    # One text: every weight is read once.
    return probe_logits(model, job.tokenizer, PROBE[-1:])


def _probe_written(path: Path, job: _MergeJob) -> Tensor:
    """Logits of the files that were written."""
    source = find_model(job.settings.model_copy(update={"name": str(path), "revision": None}))
    found = streamable_model(source, job.torch_dtype)
    if found is None:
        raise GoraError(f"{path} does not hold the weights of the base model: it was not kept.")
    model, held, _ = found
    stream_weights(model, held, job.torch_dtype, default_device())
    return _probe_streamed(model, job)


def _merge(job: _MergeJob) -> tuple[PreTrainedModel, Tensor]:
    model = load_model(job.settings, job.source, default_device())
    for origin, (adapter, _) in zip(job.origins, job.adapters, strict=True):
        _check_base(origin, adapter, base_weights(model), job)
    settle_padding(model, padding_id(job.tokenizer, embedding_rows(model)))
    wrapped = load_adapters(model, job.adapters)
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


def _check_base(origin: BaseNote | None, adapter: Path, held: Iterable[tuple[str, Tensor]], job: _MergeJob) -> None:
    """Refuse another base. The same weights may be stored in another type: those in memory then decide."""
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
    if origin.quantization or weights_fingerprint(held) != origin.fingerprint:
        raise other_base(job.settings.name, adapter, changed, "Give that one with --base.")


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
