"""Training steps on one GPU: PEFT with transformers' Trainer as documented, with Liger, and gora's.

    python scripts/benchmarks/training.py --rows math=gsm8k/train.jsonl --output training.json

One model with random bfloat16 weights (an 8B shape, or SmolLM2-135M's) stays on the GPU; every way puts its own LoRA
round it and trains on the same token ids: rows of one length, or of the lengths that the rows of a file have with the
model of the quickstart's tokenizer. A rate counts tokens of rows, padding left out, over the median of the last steps;
memory is the peak that torch allocated, the model included.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import own_ways
import peers
import torch
from clock import Clock
from in_memory import (
    ALL_LINEAR,
    ATTENTION,
    SHAPES,
    card,
    clear,
    drawn,
    fixed,
    lengths,
    make_model,
    restore,
    the_device,
    versions,
)
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from gora.data import Examples

WAYS = {**peers.WAYS, **own_ways.WAYS}


def main() -> None:
    """Measure every setting in every way; print a table, write JSON after each."""
    arguments = _arguments()
    own_ways.RECORDING = arguments.recording
    device = the_device()
    results: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        model = make_model(shape, device)
        weights = sum(value.numel() for value in model.parameters()) - model.get_input_embeddings().weight.numel()
        for name, targets, rows, micro, batch in settings(shape, arguments):
            for way in arguments.ways:
                measured = attempt(way, model, targets, rows, micro, batch, arguments, device)
                row = {"shape": shape, "setting": name, "way": way, **measured}
                if "rate" in row:
                    row["tflops"] = 4 * weights * row["rate"] / 1e12
                results.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                facts = {"card": card(device), "versions": versions(), "command": sys.argv[1:]}
                arguments.output.write_text(json.dumps({**facts, "results": results}, indent=1))
        del model
        clear()
    print(table(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("training.json"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "135m"])
    parser.add_argument("--rows", nargs="*", default=[], help="NAME=FILE of JSON lines; question or prompt, and answer")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--settings", nargs="*", default=None, help="only those whose name contains one of these")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a step, of those of mixed lengths")
    parser.add_argument("--recording", type=int, default=12, help="steps before them where passes are recorded")
    parser.add_argument("--counted", type=int, default=4, help="the last of them, of which a rate is the median")
    return parser.parse_args()


def settings(shape: str, arguments: argparse.Namespace) -> list[tuple[str, list[str], Examples, int, int]]:
    """Name, targets, rows, rows of a micro-batch and of a step."""
    vocabulary = SHAPES[shape]["vocab_size"]
    mixed = {name: lengths(Path(path)) for name, _, path in (each.partition("=") for each in arguments.rows)}
    found = [
        ("attention, 4 x 1024", ATTENTION, fixed(1024, vocabulary), 4, 16),
        ("attention, 1 x 4096", ATTENTION, fixed(4096, vocabulary), 1, 4),
        ("all-linear, 4 x 1024", ALL_LINEAR, fixed(1024, vocabulary), 4, 16),
    ]
    for name, pairs in mixed.items():
        rows = drawn(pairs, vocabulary)
        found.append((f"attention, {name}", ATTENTION, rows, 8, arguments.batch_size))
        found.append((f"all-linear, {name}", ALL_LINEAR, rows, 8, arguments.batch_size))
    wanted = arguments.settings
    return [each for each in found if wanted is None or any(part in each[0] for part in wanted)]


def attempt(
    way: str,
    model: LlamaForCausalLM,
    targets: list[str],
    rows: Examples,
    micro: int,
    batch: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Rate, padding and memory; or what went wrong."""
    clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device, arguments.counted)
    try:
        wrapped = get_peft_model(model, lora(model, targets, mixed="mixed ranks" in way))
        with tempfile.TemporaryDirectory() as folder:
            facts = WAYS[way](wrapped, rows, micro, batch, arguments.steps, clock, Path(folder))
        measured = {**facts, **clock.facts()}
        if device.type == "cuda":
            measured["memory"] = torch.cuda.max_memory_allocated()
            measured["reserved"] = torch.cuda.max_memory_reserved()
        return measured
    except Exception as error:  # one way that fails must not take the others along
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        restore(model)


def lora(model: LlamaForCausalLM, targets: list[str], *, mixed: bool) -> LoraConfig:
    """Rank 8 everywhere, or from 4 to 32 as a plan may give them."""
    generator = random.Random(0)
    layers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets] if mixed else []
    pattern = {name: generator.choice([4, 4, 5, 6, 7, 8, 8, 10, 12, 16, 32]) for name in layers}
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, rank_pattern=pattern)


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table; ratios are to PEFT with the Trainer in the same setting."""
    lines = [
        "| shape, setting | way | tokens/s | ratio | TFLOP/s (4N) | padding | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        head = f"| {row['shape']}, {row['setting']} | {row['way']} |"
        if "error" in row:
            lines.append(f"{head} failed: {row['error'][:80]} |")
            continue
        same = [each for each in results if (each["shape"], each["setting"]) == (row["shape"], row["setting"])]
        base = next((each["rate"] for each in same if each["way"] == "PEFT + Trainer" and "rate" in each), None)
        ratio = f"{row['rate'] / base:.2f}" if base else ""
        padding = f"{row['padding']:.0%}" if "padding" in row else ""
        memory = f"{row['memory'] / 1e9:.1f}" if "memory" in row else ""
        lines.append(f"{head} {row['rate']:,.0f} | {ratio} | {row['tflops']:.0f} | {padding} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
