"""The gradient pass on rows of mixed lengths: padded, and end to end, on one GPU.

    python scripts/benchmarks/gradient_rows.py --rows math=gsm8k/train.jsonl --output gradient-rows.json

The models and rows are those of `training.py`, the pass is gora's own, with micro-batches of 8 rows and sums on the
GPU. A rate counts tokens of rows, padding left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from training import SHAPES, card, clear, drawn, lengths, make_model, restore, versions
from transformers import AutoTokenizer, LlamaForCausalLM

from gora import assets
from gora.adapters.dry_wrap import choose_layers
from gora.data.collate import Collator
from gora.data.examples import DataCounts, Examples, count
from gora.data.preparation import PreparedData
from gora.models.source import Source
from gora.plan import ModelIdentity
from gora.planning.gradient_pass import collect_gradients
from gora.recipe import load_recipe
from gora.runs.base_model import speed_up
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.inputs import TextInputs
from gora.runtime.engine import Engine
from gora.runtime.world import World


def main() -> None:
    """Measure every setting; print and write JSON after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gradient-rows.json"))
    parser.add_argument("--rows", nargs="+", required=True, help="NAME=FILE of JSON lines, as for training.py")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "135m"])
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--micro-batches", type=int, default=32)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        model = make_model(shape, device).eval()
        for name, _, path in (each.partition("=") for each in arguments.rows):
            rows = drawn(lengths(Path(path)), int(SHAPES[shape]["vocab_size"]))
            for targets in arguments.targets:
                for packing, kernels in (("none", "none"), ("none", "auto"), ("auto", "auto")):
                    row = {"shape": shape, "rows": name, "targets": targets, "packing": packing, "kernels": kernels}
                    try:
                        row |= measure(model, rows, targets, packing, kernels, arguments.micro_batches)
                    except Exception as error:  # one setting less, and said so
                        row["error"] = f"{type(error).__name__}: {error}"[:500]
                    restore(model)
                    model.config._attn_implementation = "sdpa"
                    clear()
                    results.append(row)
                    print(json.dumps(row), flush=True)
                    facts = {"card": card(device), "versions": versions()}
                    arguments.output.write_text(json.dumps({**facts, "results": results}, indent=1))
        del model
        clear()


def measure(
    model: LlamaForCausalLM, rows: Examples, targets: str, packing: str, kernels: str, steps: int
) -> dict[str, Any]:
    """Rate and memory of a pass, after a short one that loads what is needed."""
    with tempfile.TemporaryDirectory() as folder:
        for number, micro_batches in enumerate((2, steps)):
            context = context_of(model, rows, targets, packing, kernels, micro_batches, Path(folder) / str(number))
            if number == 0:
                speed_up(context, model)
            layers = {name: model.get_submodule(name) for name in context.chosen.layers}
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            identity = ModelIdentity(name="random", config="0" * 64, weights="0" * 64)
            collected = collect_gradients(context, model, layers, identity, low_memory=False)
            rate = collected.facts["tokens_per_second"]
            del collected
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"rate": rate, "memory": peak}


def context_of(
    model: LlamaForCausalLM, rows: Examples, targets: str, packing: str, kernels: str, steps: int, folder: Path
) -> RunContext:
    """A run on these rows, whose model is in memory and nowhere else."""
    values = {
        "output": folder,
        "adapter.targets": targets,
        "data.eval": "null",
        "data.packing": packing,
        "evaluation.steps": "null",
        "gora.steps": steps,
        "gora.micro_batch_size": 8,
        "gora.offload": "none",
        "train.kernels": kernels,
    }
    recipe = load_recipe("quickstart", [f"{key}={value}" for key, value in values.items()]).recipe
    context = RunContext._of(recipe, World(), Engine.of("ddp"), mode="new", folder=RunFolder(folder))
    source = Source(path=str(folder), revision=None, trust_remote_code=False, config=model.config)
    data = PreparedData(rows, None, DataCounts(count(rows, rows=len(rows))), rows.fingerprint())
    tokenizer = AutoTokenizer.from_pretrained(assets.resolve("builtin:tiny-6m", "models"))
    inputs = TextInputs(source=source, processor=tokenizer, data=data, collator=Collator(0))
    context.__dict__.update({"inputs": inputs, "chosen": choose_layers(recipe.adapter, source)})
    return context


if __name__ == "__main__":
    main()
