"""What is known of a merge before the base model is read, and whether it can begin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gora.adapters.base import base_named, find_base, other_base
from gora.adapters.load import head_of, read_base_note, tensor_names
from gora.adapters.mergeable import unmergeable_base
from gora.adapters.new_tokens import token_ids
from gora.adapters.save import BaseNote
from gora.errors import InputError
from gora.models.fingerprint import weights_fingerprint
from gora.models.image_processor import Processor, load_image_reader
from gora.models.probe import TOLERANCES
from gora.models.quantization import stored_quantization
from gora.models.source import Source
from gora.models.tokenizer import load_tokenizer
from gora.models.weight_files import read_stored_weights
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import ModelSection
from gora.runtime.console import output


class Merge(Protocol):
    """A way of merging.

    Attributes:
        expected: logits of base and adapter.
        bytes: size of the merged model.
    """

    @property
    def expected(self) -> Tensor: ...

    @property
    def bytes(self) -> int: ...

    def write(self, folder: Path) -> Mapping[str, str]:
        """Write the merged model; SHA-256 of some of its files, by their names, where they are known."""

    def logits_of(self, folder: Path) -> Tensor:
        """Logits of what was written, to be compared with those expected."""


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """All that is known before the base model is loaded.

    Attributes:
        adapters: each with the factor on its update.
        origins: what gora noted of the base of each.
        source: the base.
        settings: the base, in the type it had in training.
        dtype: type of the merged weights.
        processor: tokenizer or image processor of the first adapter.
        tokens: those whose embeddings the adapter holds.
    """

    adapters: Sequence[tuple[Path, float]]
    origins: Sequence[BaseNote | None]
    source: Source
    settings: ModelSection
    dtype: str
    processor: Processor
    tokens: list[int]

    @classmethod
    def of(
        cls,
        adapters: Sequence[tuple[Path, float]],
        config: PeftConfig,
        base: str | None,
        dtype: str,
        trust_remote_code: bool,
    ) -> MergeJob:
        """Look at adapters and base.

        Args:
            adapters: folders, each with its factor.
            config: of the first one.
            base: what the user calls the base, on the hub with or without a revision; None is what the adapter names.
            dtype: of the merged weights, or `auto`.
            trust_remote_code: let the model run Python code of its own.

        Raises:
            InputError: a file is broken, there is no such base, or it is stored in few bits.
        """
        adapter = adapters[0][0]
        origins = [read_base_note(path) for path, _ in adapters]
        origin = origins[0]
        # A broken file is named before anything is loaded.
        for path, _ in adapters:
            tensor_names(path)
        name, revision = base_named(config, base)
        settings = ModelSection(name=name, revision=revision, head=head_of(config))
        labels = origin.labels if origin else None
        source = find_base(
            settings, adapter, given=base is not None, labels=labels, trust_remote_code=trust_remote_code
        )
        if (stored := stored_quantization(source.config)) is not None:
            raise InputError(unmergeable_base(name, stored))
        loaded = origin.dtype if origin else _own_dtype(source)
        settings = settings.model_copy(update={"dtype": loaded})
        processor = _find_processor(adapter, settings, source)
        tokens = token_ids(config)
        if tokens and isinstance(processor, PreTrainedTokenizerBase) and max(tokens) >= len(processor):
            raise InputError(
                f"{adapter} holds the embedding of token {max(tokens):,}, but its tokenizer has {len(processor):,} "
                "tokens. Put the tokenizer that it was trained with into its folder."
            )
        return cls(
            tokens=tokens,
            adapters=adapters,
            origins=origins,
            source=source,
            settings=settings,
            dtype=loaded if dtype == "auto" else dtype,
            processor=processor,
        )

    @property
    def adapter(self) -> Path:
        """The first of the adapters, whose tokenizer and prompt format the merged model gets."""
        return self.adapters[0][0]

    @property
    def loaded(self) -> torch.dtype:
        """Type that the base's weights had in training."""
        found: torch.dtype = getattr(torch, self.settings.dtype)
        return found

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

    def check_base(self, held: Iterable[tuple[str, Tensor]]) -> None:
        """Refuse another base. The same weights may be stored in another type: those in memory then decide.

        Args:
            held: name and value of every weight, as in training; read only where the files do not tell.

        Raises:
            InputError: an adapter was trained on other weights.
        """
        fingerprint: str | None = None
        for origin, (adapter, _) in zip(self.origins, self.adapters, strict=True):
            if origin is None:
                continue
            changed = self._changes_since(origin)
            if not changed:
                continue
            if fingerprint is None and not origin.quantization:
                fingerprint = weights_fingerprint(held)
            # What was held in training was not these weights if they were quantised there.
            if origin.quantization or fingerprint != origin.fingerprint:
                raise other_base(self.settings.name, adapter, changed, "Give that one with --base.")

    def _changes_since(self, origin: BaseNote) -> str:
        if origin.quantization:
            output.warn(
                f"the adapter was trained on a base in {origin.quantization}; it is merged into the full weights, "
                "which compute something slightly different."
            )
        if origin.weights is None or (origin.quantized_files and not self.source.quantized_files):
            # Nothing says which files hold the full weights of a base whose own files are quantised.
            return "" if origin.quantization else "the fingerprints differ"
        return read_stored_weights(self.source).changes_since(origin.weights)


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


def refuse_several(adapters: Sequence[tuple[Path, float]], configs: Sequence[PeftConfig]) -> None:
    """Several adapters are folded together where each is B A beside a weight of the same base; raises InputError."""
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


def _own_dtype(source: Source) -> str:
    return "bfloat16" if source.config.dtype == torch.bfloat16 else "float32"


def _find_processor(adapter: Path, settings: ModelSection, source: Source) -> Processor:
    if reads_images(source.head):
        return load_image_reader(settings, source, adapter)
    if (adapter / "tokenizer_config.json").is_file():
        settings = settings.model_copy(update={"tokenizer": str(adapter)})
    return load_tokenizer(settings, source)
