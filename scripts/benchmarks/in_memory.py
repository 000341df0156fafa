"""What the benchmarks on one GPU share: a model with random weights in memory, rows of random ids, and runs on both."""

from __future__ import annotations

import gc
import json
import random
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from gora.adapters.dry_wrap import choose_layers
from gora.data import Collator, Encoded, Examples
from gora.data.examples import DataCounts, count
from gora.data.preparation import PreparedData
from gora.models.source import Source
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.inputs import TextInputs
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.world import World

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "gora" / "assets" / "models" / "tiny-6m"
ROTARY = modeling_llama.apply_rotary_pos_emb
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "tiny": {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


def make_model(shape: str, device: torch.device) -> LlamaForCausalLM:
    """A Llama of the shape with random weights, frozen."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    config = LlamaConfig(max_position_embeddings=8192, rope_parameters=rope, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    return model.requires_grad_(False)


def lengths(path: Path) -> list[tuple[int, int]]:
    """Tokens of prompt and of answer of each row of a file."""
    if path.suffix == ".json":
        return [(prompt, answer) for prompt, answer in json.loads(path.read_text())]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [row.get("question") or row.get("prompt") or row.get("instruction") for row in rows]
    answers = [row.get("answer") or row.get("response") or row.get("output") for row in rows]
    counts = [len(ids) for ids in tokenizer([*prompts, *answers])["input_ids"]]
    return list(zip(counts[: len(rows)], counts[len(rows) :], strict=True))


def fixed(tokens: int, vocabulary: int, rows: int = 256) -> Examples:
    """Rows of one length, of which the second half is trained."""
    return drawn([(tokens // 2, tokens - tokens // 2)] * rows, vocabulary)


def drawn(pairs: list[tuple[int, int]], vocabulary: int, longest: int = 1024) -> Examples:
    """Rows of random ids with these lengths of prompt and answer."""
    generator = random.Random(0)
    encoded = []
    for prompt, answer in pairs:
        ids = [generator.randrange(10, vocabulary) for _ in range(prompt + answer)][: max(longest, pairs[0][0] * 2)]
        encoded.append(Encoded(array("i", ids), array("i", [-100] * prompt + ids[prompt:])))
    encoded = [each for each in encoded if any(label >= 0 for label in each.labels)]
    return Examples(encoded, [""] * len(encoded))


def context_of(model: LlamaForCausalLM, rows: Examples, settings: Mapping[str, Any], folder: Path) -> RunContext:
    """A run on these rows, whose model is in memory and nowhere else.

    Args:
        model: that model.
        rows: what it is trained on.
        settings: of the recipe, by dotted key; the rest is the quickstart's.
        folder: of the run.
    """
    values = {"output": folder, "data.eval": "null", "evaluation.steps": "null", **settings}
    recipe = load_recipe("quickstart", [f"{key}={value}" for key, value in values.items()]).recipe
    context = RunContext._of(recipe, World(), Engine.of("ddp"), mode="new", folder=RunFolder(folder))
    source = Source(path=str(folder), revision=None, trust_remote_code=False, config=model.config)
    data = PreparedData(rows, None, DataCounts(count(rows, rows=len(rows))), rows.fingerprint())
    inputs = TextInputs(
        source=source, processor=AutoTokenizer.from_pretrained(TOKENIZER), data=data, collator=Collator(0)
    )
    context.__dict__.update({"inputs": inputs, "chosen": choose_layers(recipe.adapter, source)})
    return context


def take_off(model: nn.Module) -> dict[str, nn.Module]:
    """Take the adapter off a model; returns its layers by the names of those that they stood for."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    put_on(model, {name: layer.base_layer for name, layer in layers.items()})
    model.__dict__.pop("peft_config", None)
    model._hf_peft_config_loaded = False
    return layers


def put_on(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers where others are."""
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)


def restore(model: LlamaForCausalLM) -> None:
    """Take off an adapter, kernels and what else has been put on a model."""
    take_off(model)
    modeling_llama.apply_rotary_pos_emb = ROTARY
    for module in model.modules():
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    model.config._attn_implementation = "sdpa"
    clear()


@contextmanager
def logging_into(lines: list[str]) -> Iterator[None]:
    """Inside the block, what gora would write to a log and not to the terminal."""
    own, output.log = output.log, lines.append  # type: ignore[method-assign]
    try:
        yield
    finally:
        output.log = own  # type: ignore[method-assign]


def finish() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def the_device() -> torch.device:
    """The GPU, or the CPU to try a script."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def card(device: torch.device) -> str:
    """Name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    from importlib.metadata import PackageNotFoundError, version

    known = {}
    for name in ("torch", "transformers", "accelerate", "peft", "liger-kernel", "trl"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


def clear() -> None:
    """Give freed memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
