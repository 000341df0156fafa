"""A model too large for one GPU under `fsdp`: the gradient pass and training steps of a 70B shape.

    torchrun --nproc-per-node 4 scripts/benchmarks/large.py --output large.json

The model has random bfloat16 weights, which each process makes for the share that it holds: nothing is read, and no
process ever has more. gora's gradient pass and gora's Trainer then run on rows of random tokens, as a run makes them,
with activation checkpointing.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from memory import Setting, machine, plain, rows_of
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gora import assets
from gora.adapters.dry_wrap import choose_layers
from gora.data.collate import Collator
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.sharding import shard_weights
from gora.models.source import Source
from gora.models.weight_files import WeightsNote
from gora.plan import ModelIdentity
from gora.planning.gradient_pass import collect_gradients
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.inputs import TextInputs
from gora.runtime.engine import Engine
from gora.runtime.interrupt import StopRequest
from gora.runtime.world import World, join
from gora.training.assembly import make_trainer
from gora.training.opening import Opened
from gora.training.start import Wrapped

SHAPES: dict[str, dict[str, Any]] = {
    "70b": {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8},
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


def main() -> None:
    """Measure both stages; process 0 prints and writes JSON after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("large.json"))
    parser.add_argument("--shape", choices=SHAPES, default="70b")
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--rows", type=int, default=2, help="of a micro-batch")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row")
    parser.add_argument("--micro-batches", type=int, default=8, help="of the gradient pass, in all processes")
    parser.add_argument("--steps", type=int, default=10, help="of training")
    parser.add_argument("--stages", nargs="+", choices=["gradients", "training"], default=["gradients", "training"])
    arguments = parser.parse_args()
    world = join(alone_too=True)
    facts: dict[str, Any] = {"machine": machine(), "processes": world.size, **vars(arguments)}
    facts["output"] = str(arguments.output)
    for stage in arguments.stages:
        with tempfile.TemporaryDirectory() as own:
            folder = Path(world.from_main(lambda own=own: own))
            try:
                facts[stage] = (gradients if stage == "gradients" else training)(arguments, world, folder)
            except Exception as error:  # the other stage is worth having all the same
                facts[stage] = {"error": f"{type(error).__name__}: {error}"[:2000]}
            if world.main:
                print(stage, json.dumps(facts[stage]), flush=True)
                arguments.output.write_text(json.dumps(facts, indent=1))
            world.barrier()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def gradients(arguments: argparse.Namespace, world: World, folder: Path) -> dict[str, Any]:
    """The gradient pass."""
    context, model = context_of(arguments, world, folder), on_meta(arguments.shape)
    model.requires_grad_(False).eval()
    start = time.perf_counter()
    fill(model, context.device)
    built = time.perf_counter() - start
    targets = {name: model.get_submodule(name) for name in context.chosen.layers}
    identity = ModelIdentity(name="random", config="0" * 64, weights="0" * 64)
    reset()
    collected = collect_gradients(context, model, targets, identity, low_memory=False)
    return {"build_seconds": built, "seconds": collected.seconds, **collected.facts, **peak(world)}


def training(arguments: argparse.Namespace, world: World, folder: Path) -> dict[str, Any]:
    """Optimizer steps, each of one micro-batch in every process."""
    context, model = context_of(arguments, world, folder), on_meta(arguments.shape)
    targets = {name: model.get_submodule(name) for name in context.chosen.layers}
    settings = AdapterSettings(rank=8, alpha=16, dropout=0.0)
    with torch.device("meta"):
        wrapped = METHODS["lora"].wrap(model.requires_grad_(False), Wrapping(targets=targets, settings=settings))
    assert isinstance(wrapped, PeftModel)
    fill(wrapped, context.device)
    trainable = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    start = Wrapped(model=wrapped, original="", frozen="", initial=None, trainable=trainable, losses={})
    opened = Opened(plan=None, checkpoint=None, steps=arguments.steps)
    reset()
    trainer, report, _ = make_trainer(context, opened, start, StopRequest())
    times: list[float] = []
    trainer.add_callback(_Ends(times))
    trainer.train()
    report.stop()
    seconds = [after - before for before, after in pairwise(times)]
    tokens = arguments.rows * arguments.tokens
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "runs_as": report.engine_text,
        "trainable": trainable,
        "step_seconds": seconds,
        "tokens_per_second_per_gpu": tokens / statistics.median(seconds),
        "losses": losses,
        **peak(world),
    }


class _Ends(TrainerCallback):
    """Notes when steps end."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())


def on_meta(shape: str) -> LlamaForCausalLM:
    """The model, without values."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            return LlamaForCausalLM(config_of(shape))
    finally:
        torch.set_default_dtype(torch.float32)


def config_of(shape: str) -> LlamaConfig:
    """The configuration of a shape."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_parameters=rope, **ids)


def fill(model: nn.Module, device: torch.device) -> None:
    """Share out a model without values, and give each share random ones."""
    shard_weights(model, device)
    model.to_empty(device=device)
    torch.manual_seed(torch.distributed.get_rank())
    with torch.no_grad():
        for name, value in model.named_parameters():
            local = value.to_local()  # type: ignore[operator]
            local.fill_(1.0) if "norm" in name else local.normal_(std=0.0 if "lora_B" in name else 0.02)
    for module in list(model.modules()):
        # Its frequencies are no parameters, and to_empty has left them undefined.
        if hasattr(module, "rotary_emb"):
            with device:
                module.rotary_emb = LlamaRotaryEmbedding(module.config)


def context_of(arguments: argparse.Namespace, world: World, folder: Path) -> RunContext:
    """A run of random rows, whose model is in memory and nowhere else."""
    values = {
        "output": str(folder),
        "distributed": "fsdp",
        "adapter.method": "lora",
        "adapter.targets": arguments.targets,
        "data.eval": "null",
        "data.max_length": arguments.tokens,
        "data.packing": "none",
        "evaluation.steps": "null",
        "gora.steps": arguments.micro_batches,
        "gora.micro_batch_size": arguments.rows,
        "train.batch_size": arguments.rows * world.size,
        "train.micro_batch_size": arguments.rows,
        "train.max_steps": arguments.steps,
        "train.log_steps": 1,
        "train.activation_checkpointing": "true",
    }
    recipe = load_recipe("quickstart", [f"{key}={value}" for key, value in values.items()]).recipe
    engine = Engine.of("fsdp")
    # Accelerate is given a model that is shared out already, and looks for its blocks by this name.
    engine = replace(engine, settings={**engine.settings, "transformer_layer_cls_to_wrap": ["FSDPLlamaDecoderLayer"]})
    context = RunContext._of(recipe, world, engine, mode="new", folder=RunFolder(folder))
    config = config_of(arguments.shape)
    source = Source(path=str(folder), revision=None, trust_remote_code=False, config=plain(config))
    needed = world.size * arguments.rows * max(arguments.steps, arguments.micro_batches)
    setting = Setting(shape="8b", targets=arguments.targets, rows=-(-needed // 6), length=arguments.tokens)
    data = rows_of(setting, config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(assets.resolve("builtin:tiny-6m", "models"))
    inputs = TextInputs(source=source, processor=tokenizer, data=data, collator=Collator(0))
    base = type("Base", (), {"note": WeightsNote(fingerprint="", tensors="")})()
    context.__dict__.update({"inputs": inputs, "chosen": choose_layers(recipe.adapter, source), "base": base})
    return context


def reset() -> None:
    """Measure memory from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak(world: World) -> dict[str, list[int]]:
    """The most memory in each process."""
    gpu = torch.cuda.is_available()
    own = [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()] if gpu else [0, 0]
    allocated, reserved = zip(*world.gather(own), strict=True)
    return {"allocated": list(allocated), "reserved": list(reserved)}


if __name__ == "__main__":
    main()
