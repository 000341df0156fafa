"""Merging in memory: for models whose weights are not each one tensor of the files, classifiers and new tokens."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.adapters.fold import fold
from gora.adapters.load import HEAD_KEY, first_of, load_adapters
from gora.adapters.merge_job import MergeJob
from gora.adapters.new_tokens import fold_tokens
from gora.data import padding_id
from gora.errors import InputError
from gora.models.device import default_device
from gora.models.fingerprint import base_weights
from gora.models.generation import settle_generation
from gora.models.head import in_head, settle_padding
from gora.models.load import load_model
from gora.models.new_tokens import embedding_rows
from gora.models.probe import PROBE, probe_logits
from gora.models.source import find_model

_PROBED_TOKENS = 16


class WholeMerge:
    """A merged model in memory; see `Merge`."""

    def __init__(self, job: MergeJob, model: PreTrainedModel, expected: Tensor) -> None:
        self._job, self._model, self.expected = job, model, expected
        self.bytes = sum(value.nbytes for value in model.parameters())

    @classmethod
    def of(cls, job: MergeJob) -> WholeMerge:
        """Load base and adapters, ask them, and fold.

        Raises:
            InputError: the base is another, or an adapter does not fit it or is more than can be folded.
        """
        model = load_model(job.settings, job.source, default_device())
        job.check_base(base_weights(model))
        if isinstance(job.processor, PreTrainedTokenizerBase):
            settle_padding(model, padding_id(job.processor, embedding_rows(model)))
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
        return cls(job, merged, expected)

    def write(self, folder: Path) -> Mapping[str, str]:
        """See `Merge`; the model is not held any longer."""
        settle_generation(self._model, self._job.processor)
        self._model.save_pretrained(str(folder), safe_serialization=True)
        del self._model
        gc.collect()
        return {}

    def logits_of(self, folder: Path) -> Tensor:
        """See `Merge`."""
        job = self._job
        settings = job.settings.model_copy(update={"name": str(folder), "revision": None, "dtype": job.dtype})
        source = find_model(settings, trust_remote_code=job.source.trust_remote_code)
        return _probe(load_model(settings, source, default_device()), job)


def _refuse_more_than_a_head(wrapped: PeftModel, job: MergeJob) -> None:
    of_head = in_head(wrapped)
    names = [name for name, module in wrapped.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    if others := [name for name in names if not of_head(name)]:
        problems = first_of([f"{HEAD_KEY}: it holds {name} besides the head." for name in others])
        raise InputError(f"{job.adapter} is more than a plain LoRA adapter; gora cannot merge it.", problems)


def _probe(model: nn.Module, job: MergeJob) -> Tensor:
    if not job.tokens or not isinstance(job.processor, PreTrainedTokenizerBase):
        return probe_logits(model, job.processor)
    told = " ".join(job.processor.convert_ids_to_tokens(job.tokens[:_PROBED_TOKENS]))
    return probe_logits(model, job.processor, (*PROBE, told))
