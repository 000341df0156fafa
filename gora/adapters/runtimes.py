"""What each runtime reads of a LoRA adapter, as data: the form to export for it, and how to start it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from gora.errors import InputError

Form = Literal["native", "compact", "uniform"]
Scale = Literal["per layer", "alpha / rank of the tensor", "alpha / r"]
FileFormat = Literal["peft", "gguf", "ollama", "mlx"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM keeps room (`--max-lora-rank`), apart from 1."""

_FOLDED = "read by PEFT alone: merge the adapter instead"
_BEYOND_PLAIN = {
    "use_dora": f"it normalises the columns of the adapted weights (DoRA), {_FOLDED}",
    "lora_bias": f"it adds a bias to B, {_FOLDED}",
    "bias": f"it holds trained biases, {_FOLDED}",
    "modules_to_save": f"it holds whole layers besides the low-rank ones, {_FOLDED}",
    "target_parameters": f"it adapts fused experts, {_FOLDED}",
    "trainable_token_indices": f"it holds embeddings of new tokens, {_FOLDED}",
    "layer_replication": "it repeats layers of the base model, which PEFT alone does",
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA), which PEFT alone does",
    "use_qalora": "it pools its input (QALoRA), which PEFT alone does",
    "use_bdlora": "it has block-diagonal factors (BD-LoRA), which PEFT alone reads",
    "arrow_config": "it chooses between adapters for every token (Arrow), which PEFT alone does",
    "kasa_config": "it changes the base weights (KaSA), which PEFT alone does",
    "monteclora_config": "it draws its values at random (MonteCLoRA), which PEFT alone does",
}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a runtime reads an adapter in PEFT's files, or in the format that is made of them.

    Attributes:
        name: as in `--for`.
        form: what is exported for it.
        why: the reason, in half a sentence.
        scale: what it multiplies B A with: the config's own value for each layer (patterns and all), the global alpha
            over the rank of each tensor, or the global alpha over the global rank.
        rslora: whether it divides by the root of the rank where `use_rslora` says so.
        one_rank: whether all tensors must have the rank `r`.
        ranks: the ranks that it keeps room for; None is any.
        whole_alpha: whether `lora_alpha` must be a whole number.
        every_layer: whether a layer that is missing drops all layers of its kind.
        leaf_names: whether `target_modules` must be names such as `q_proj`.
        refuses: settings of PEFT that it does not read, with the reason.
        initialisations: values of `init_lora_weights` that it refuses.
        file: what the adapter is written as.
        command: how a server is started; `{base}`, `{adapter}` and `{rank}` are filled in.
    """

    name: str
    form: Form
    why: str
    scale: Scale = "alpha / r"
    rslora: bool = False
    one_rank: bool = False
    ranks: tuple[int, ...] | None = None
    whole_alpha: bool = False
    every_layer: bool = False
    leaf_names: bool = False
    refuses: Mapping[str, str] = field(default_factory=lambda: _BEYOND_PLAIN)
    initialisations: tuple[str, ...] = ()
    file: FileFormat = "peft"
    command: str = ""


PEFT = Runtime(
    name="peft",
    form="native",
    why="PEFT reads one rank and one scale per layer",
    scale="per layer",
    rslora=True,
    refuses={},
)
_VLLM = Runtime(
    name="vllm",
    form="uniform",
    why="vLLM before 0.32 scales every layer with the global alpha (name the version for the native form)",
    rslora=True,
    ranks=RANKS,
    command="vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules gora={adapter}",
)
_VLLM_WITH_PATTERNS = replace(
    _VLLM,
    form="native",
    why="vLLM 0.32 and later read one rank and one scale per layer",
    scale="per layer",
    initialisations=("pissa", "olora", "corda", "loftq"),
)
_PATTERNS_SINCE = (0, 32)
_LLAMA_CPP = Runtime(
    name="llama.cpp",
    form="compact",
    why="llama.cpp divides one global alpha by the rank of each tensor",
    scale="alpha / rank of the tensor",
    file="gguf",
    command="llama-server -m BASE.gguf --lora {adapter}/adapter.gguf",
)
_OTHERS = (
    PEFT,
    _VLLM,
    Runtime(
        name="sglang",
        form="uniform",
        why="SGLang reads one rank and one alpha for all layers",
        one_rank=True,
        leaf_names=True,
        command="python -m sglang.launch_server --model-path {base} --max-lora-rank {rank} --lora-paths gora={adapter}",
    ),
    Runtime(
        name="tgi",
        form="uniform",
        why="TGI stacks the layers of each kind at one rank, and drops a kind with a missing layer",
        rslora=True,
        one_rank=True,
        every_layer=True,
        command="LORA_ADAPTERS=gora={adapter} text-generation-launcher --model-id {base}",
    ),
    _LLAMA_CPP,
    replace(
        _LLAMA_CPP,
        name="ollama",
        why="Ollama divides one global alpha, a whole number, by the rank of each tensor",
        whole_alpha=True,
        file="ollama",
        command="ollama create NAME -f {adapter}/Modelfile",
    ),
    Runtime(
        name="mlx",
        form="uniform",
        why="MLX has one rank and one scale for all layers, and factors the other way round",
        one_rank=True,
        every_layer=True,
        file="mlx",
        command="mlx_lm.server --model {base} --adapter-path {adapter}",
    ),
)
RUNTIMES = {runtime.name: runtime for runtime in _OTHERS}


def find_runtime(named: str) -> Runtime:
    """The runtime of `--for`: a name, for vLLM also with its version (`vllm@0.32.0`).

    Raises:
        InputError: it is not known, or the version cannot be read.
    """
    name, at, version = named.partition("@")
    if name not in RUNTIMES:
        raise InputError(f"--for {named}: must be one of {', '.join(RUNTIMES)}; vllm takes a version (vllm@0.32).")
    if not at:
        return RUNTIMES[name]
    if name != "vllm":
        raise InputError(f"--for {named}: the form for {name} is the same for all versions; leave out @{version}.")
    numbers = re.match(r"v?(\d+)\.(\d+)(?:\D|$)", version)
    if numbers is None:
        raise InputError(f"--for {named}: {version!r} is not a version such as 0.32.0.")
    if (int(numbers[1]), int(numbers[2])) >= _PATTERNS_SINCE:
        return _VLLM_WITH_PATTERNS
    return replace(_VLLM, why=f"vLLM {version} scales every layer with the global alpha")


def runtime_of_vllm(version: str) -> Runtime:
    """The rules of an installed vLLM; those of the earliest where its version says nothing."""
    try:
        return find_runtime(f"vllm@{version}")
    except InputError:
        return RUNTIMES["vllm"]
