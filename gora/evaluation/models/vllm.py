"""Generation with vLLM, where it is installed: the same prompts, token for token, and the same adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gora.adapters.forms import read_lora, served_rank, write_uniform
from gora.adapters.reading import misreadings
from gora.adapters.runtimes import runtime_of_vllm
from gora.errors import InputError, pip_extra
from gora.evaluation.task import Sampling
from gora.models.device import base_dtype, default_device
from gora.models.positions import positions_of
from gora.models.quantization import quantization_of
from gora.models.source import Source
from gora.recipe.schema import ModelSection
from gora.runtime.scratch import Scratch

_SHARE_OF_HOST = 0.3
_AT_ONCE = 256  # prompts between two looks at the progress; vLLM shares out its memory by itself


def check_vllm(settings: ModelSection, source: Source) -> None:
    """Refuse what vLLM cannot do here, before anything is loaded.

    Raises:
        InputError: it is not installed, or the base is quantised.
    """
    if find_spec("vllm") is None:
        raise InputError(f"--backend vllm needs vLLM: {pip_extra('vllm')}, or leave the option out.")
    if kind := quantization_of(settings, source):
        raise InputError(f"--backend vllm is not given a base in {kind}; use --backend hf.")


def _given(adapter: Path, version: str, copy: Path) -> tuple[Path, int, str]:
    """The folder that a vLLM of this version is given, the rank that it keeps room for, and the form in the folder."""
    lora, runtime = read_lora(adapter), runtime_of_vllm(version)
    if runtime.form == "native" and not misreadings(lora, runtime):
        return adapter, served_rank(lora), "native"
    return copy, write_uniform(adapter, copy), "uniform"


class Vllm:
    """Answers prompts of token ids; a `Backend`.

    Args:
        settings: the base model.
        source: where it lies.
        adapter: a plain LoRA adapter, or None. A vLLM that reads ranks and scales of layers is given it as it is,
            another one a copy with one rank and scale 1.
    """

    def __init__(self, settings: ModelSection, source: Source, adapter: Path | None) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self._sampling_params = vllm.SamplingParams
        self._request: Any = None
        self._form: str | None = None
        arguments: dict[str, Any] = {}
        self._version: str = vllm.__version__
        if adapter is not None:
            # vLLM reads the folder when it first needs it.
            self._copy = Scratch("adapter")
            folder, rank, self._form = _given(adapter, self._version, Path(self._copy.path) / "adapter")
            arguments = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
            self._request = LoRARequest("gora", 1, str(folder))
        if not torch.cuda.is_available():
            # Compiling takes minutes there, and its share of memory is one of the whole machine's.
            arguments |= {"enforce_eager": True, "gpu_memory_utilization": _SHARE_OF_HOST}
        self._longest = positions_of(source.config)
        self._engine = vllm.LLM(
            model=source.path,
            revision=source.revision,
            # As transformers would load it: vLLM's own `auto` is the type of the files.
            dtype=str(base_dtype(settings.dtype, default_device())).removeprefix("torch."),
            trust_remote_code=source.trust_remote_code,
            **arguments,
        )
        self._cut_short = 0

    @property
    def facts(self) -> dict[str, Any]:
        """See `Backend`."""
        form = {} if self._form is None else {"adapter_form": self._form}
        return {"backend": f"vllm {self._version}", "cut_short": self._cut_short, **form}

    def close(self) -> None:
        """End the engine, whose own end, when Python ends, comes after that of the process groups."""
        self._engine.llm_engine.engine_core.shutdown()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> list[list[str]]:
        """See `Generator.generate`."""
        answers: list[list[str]] = []
        for start in range(0, len(prompts), _AT_ONCE):
            answers += self._some(prompts[start : start + _AT_ONCE], sampling, advance, base)
        return answers

    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> list[float]:
        """See `Backend`."""
        raise InputError("--backend vllm only generates; likelihoods of choices need --backend hf.")

    def _some(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], base: bool
    ) -> list[list[str]]:
        rooms = [self._room(len(ids), sampling.max_new_tokens) for ids in prompts]
        self._cut_short += sum(room < sampling.max_new_tokens for room in rooms)
        asked = [index for index, room in enumerate(rooms) if room > 0]
        made = self._engine.generate(
            [{"prompt_token_ids": prompts[index]} for index in asked],
            [self._parameters(sampling, rooms[index]) for index in asked],
            lora_request=None if base else self._request,
            use_tqdm=False,
        )
        answers = [[""] * sampling.samples for _ in prompts]
        for index, one in zip(asked, made, strict=True):
            answers[index] = [choice.text for choice in one.outputs]
        advance(len(prompts), sum(len(choice.token_ids) for one in made for choice in one.outputs))
        return answers

    def _room(self, length: int, wanted: int) -> int:
        return wanted if self._longest is None else min(wanted, self._longest - length)

    def _parameters(self, sampling: Sampling, room: int) -> Any:
        return self._sampling_params(
            n=sampling.samples,
            temperature=sampling.temperature,
            max_tokens=room,
            stop=list(sampling.stop),
            seed=sampling.seed,
        )
