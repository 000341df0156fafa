"""Precompute and training steps of an 8B-shaped model on one GPU and on several, under the engines.

    python scripts/benchmarks/distributed.py --gpus 1 2 --engines ddp zero2-offload --output distributed.json

Writes a Llama-3.1-8B with random bfloat16 weights and rows of about 1024 tokens to a working folder, and runs
`gora run` on them as a user would: attention targets, rank 8, micro-batches of 4 rows. One process is measured under
the first engine only. Figures are those of `results.json`: rates over the whole pass and over all training steps, with
the first ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "gora" / "assets" / "models" / "tiny-6m"


def main() -> None:
    """Measure everything, print a table, write JSON after each run."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_model(arguments.work / "model", arguments.layers)
    make_rows(arguments.work / "rows.jsonl", arguments.tokens)
    runs = [(engine, gpus) for engine in arguments.engines for gpus in arguments.gpus]
    rows: list[dict[str, Any]] = []
    for engine, gpus in runs:
        if gpus == 1 and engine != arguments.engines[0]:
            continue
        rows.append({"engine_asked": engine, "gpus": gpus, **measure(engine, gpus, arguments)})
        print(json.dumps(rows[-1]), flush=True)
        arguments.output.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=2))
    print("\n" + table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("distributed.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-benchmark"), help="room for 17 GB")
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model; 32 is Llama-3.1-8B")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero2-offload"])
    parser.add_argument("--micro-batches", type=int, default=96, help="of the gradient pass")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--batch-size", type=int, default=48, help="rows of a training step")
    parser.add_argument("--device", choices=["gpus", "processes"], default="gpus", help="what --gpus counts")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    return parser.parse_args()


def make_model(folder: Path, layers: int) -> None:
    """A Llama-3.1-8B with random weights; `layers` below 4 make a small one, to try the script."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = layers < 4
    config = LlamaConfig(
        vocab_size=128256 if not small else 4096,
        hidden_size=4096 if not small else 64,
        intermediate_size=14336 if not small else 128,
        num_hidden_layers=layers,
        num_attention_heads=32 if not small else 4,
        num_key_value_heads=8 if not small else 2,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    fill_vocabulary(folder / "tokenizer.json", config.vocab_size)


def fill_vocabulary(path: Path, size: int) -> None:
    """Give a tokenizer as many tokens as a model has embeddings; no text becomes one of those that are new."""
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in document["added_tokens"])}
    vocabulary.update({f"unused {number}": number for number in range(size) if number not in taken})
    path.write_text(json.dumps(document), encoding="utf-8")


def make_rows(path: Path, tokens: int) -> None:
    """Rows that the tokenizer turns into more than `tokens` tokens, which `data.max_length` cuts."""
    import random

    draw = random.Random(0)
    words = ["sum", "apple", "train", "seven", "price", "because", "total", "hour", "left", "each", "more", "than"]
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(1600):
            text = " ".join(draw.choice(words) for _ in range(2 * tokens))
            stream.write(json.dumps({"prompt": "Tell me more.", "response": text}) + "\n")


def measure(engine: str, gpus: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One `gora run`, and what its results say."""
    work = arguments.work
    output = work / f"run-{engine}-{gpus}"
    shutil.rmtree(output, ignore_errors=True)
    settings = {
        "model.name": work / "model",
        "data.train.path": work / "rows.jsonl",
        "data.max_length": arguments.tokens,
        "gora.steps": arguments.micro_batches,
        "train.micro_batch_size": 4,
        "train.batch_size": arguments.batch_size,
        "train.max_steps": arguments.steps,
        "train.log_steps": 1,
        "distributed": engine,
        "output": output,
    }
    recipe = work / "recipe.yaml"
    recipe.write_text("model: {name: x}\ndata: {train: {path: x}}\n")
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    options += [part for value in arguments.set for part in ("--set", value)]
    command = [sys.executable, "-m", "gora", "run", str(recipe), f"--{arguments.device}", str(gpus), *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        failure = output / "failure.json"
        error = json.loads(failure.read_text())["message"] if failure.exists() else done.stderr[-3000:]
        return {"error": error, "seconds": seconds}
    results = json.loads((output / "results.json").read_text())
    stages = [results[stage] for stage in ("precompute", "train") if stage in results]
    gradients = results.get("precompute")
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": seconds,
        "rates": [line["tokens_per_second"] for line in logged if "loss" in line],
        "gradient_seconds": gradients["seconds"]["gradients"] if gradients else 0.0,
        "gradient_rate": gradients["tokens_per_second"] if gradients else 0.0,
        "train_seconds": results["train"]["seconds"],
        "train_rate": results["train"]["tokens_per_second"],
        "engine": results["train"]["runs_as"],
        "sums": gradients["sums"] if gradients else None,
        "memory": [stage["peak_bytes"] for stage in stages],
        "losses": [line.get("loss") for line in logged],
    }


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    from importlib.metadata import PackageNotFoundError, version

    known = {}
    for name in ("torch", "transformers", "accelerate", "deepspeed", "peft"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


def memory_text(peak: dict[str, int]) -> str:
    """Peak bytes of host and GPU in words."""
    return ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in peak.items())


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; efficiency is against one process."""
    titles = ["engine", "GPUs", "precompute s", "tokens/s per GPU", "speed-up"]
    titles += ["training tokens/s per GPU", "speed-up", "peak memory: precompute; training"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    one = next((row for row in rows if row["gpus"] == 1 and "error" not in row), None)
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['engine_asked']} | {row['gpus']} | failed: {row['error'].splitlines()[-1]} |")
            continue
        gpus = row["gpus"]
        seconds = f"{one['gradient_seconds'] / row['gradient_seconds']:.2f}" if one else ""
        training = f"{row['train_rate'] / one['train_rate']:.2f}" if one else ""
        lines.append(
            f"| {row['engine_asked']} | {gpus} | {row['gradient_seconds']:.1f} | {row['gradient_rate'] / gpus:,.0f} | "
            f"{seconds} | {row['train_rate'] / gpus:,.0f} | {training} | {'; '.join(map(memory_text, row['memory']))} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
