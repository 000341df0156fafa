"""Precompute and training steps of an 8B-shaped model on one GPU and on several, under the engines.

    python scripts/benchmarks/distributed.py --gpus 1 2 --engines ddp zero2-offload --output distributed.json

Writes a Llama-3.1-8B with random bfloat16 weights and rows of about 1024 tokens to a working folder, and runs
`gora run` on them as a user would: rank 8, micro-batches of 4 rows. One process is measured under the first engine
only. The rate of the gradient pass is over the whole pass; that of training is the median of the steps of the second
half, and beside it the one of all steps, in which lengths are recorded and kernels loaded.

With `--together`, all runs of a number of GPUs are made one after the other by the same processes, which saves their
start; host memory is then the most that any run so far has taken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROW = "row "
ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "gora" / "assets" / "models" / "tiny-6m"


def main() -> None:
    """Measure everything, print a table, write JSON after each run."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_model(arguments.work / "model", arguments.layers)
    make_rows(arguments.work / "rows.jsonl", arguments.tokens)
    if arguments.within:
        run_all(arguments)
        return
    rows: list[dict[str, Any]] = []
    for gpus in arguments.gpus:
        for row in together(gpus, arguments) if arguments.together else apart(gpus, arguments):
            rows.append(row)
            print(json.dumps(row), flush=True)
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
    parser.add_argument("--targets", nargs="+", default=["attention"])
    parser.add_argument("--together", action="store_true", help="all runs of a number of GPUs in the same processes")
    parser.add_argument("--within", type=int, default=0, help="this is one of so many processes that make the runs")
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
    torch.set_default_dtype(torch.float32)
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


def runs_of(gpus: int, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Engine and targets of each run."""
    engines = arguments.engines if gpus > 1 else arguments.engines[:1]
    yield from ((engine, targets) for targets in arguments.targets for engine in engines)


def apart(gpus: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each run by a command of its own."""
    given = list(arguments.set)
    for engine, targets in runs_of(gpus, arguments):
        arguments.set = [*given, f"adapter.targets={targets}"]
        yield {"engine_asked": engine, "targets": targets, "gpus": gpus, **measure(engine, gpus, arguments)}
    arguments.set = given


def together(gpus: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs in the same processes; what they tell arrives line by line."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"] if gpus > 1 else []
    command = [sys.executable, *launcher, __file__, *sys.argv[1:], "--within", str(gpus)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith(_ROW):
                yield json.loads(line.removeprefix(_ROW))


def run_all(arguments: argparse.Namespace) -> None:
    """The runs, in one of the processes that `together` has started."""
    from gora.errors import GoraError
    from gora.recipe import load_recipe
    from gora.runtime.out_of_memory import release_memory
    from gora.runtime.world import join
    from gora.stages.run import run

    world = join(alone_too=arguments.within > 1)
    given = list(arguments.set)
    for engine, targets in runs_of(arguments.within, arguments):
        arguments.set = [*given, f"adapter.targets={targets}"]
        output, recipe, overrides = prepare(engine, arguments.within, arguments)
        world.barrier()
        start, row = time.perf_counter(), {"engine_asked": engine, "targets": targets, "gpus": arguments.within}
        try:
            run(load_recipe(str(recipe), overrides).recipe)
        except GoraError as error:
            row |= {"error": str(error), "seconds": time.perf_counter() - start}
        else:
            row |= {"seconds": time.perf_counter() - start, **(outcome(output) if world.main else {})}
        release_memory()
        if world.main:
            print(_ROW + json.dumps(row | left()), flush=True)
        world.barrier()


def left() -> dict[str, int]:
    """Bytes of the GPU that this process still holds between two runs."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"left": torch.cuda.memory_allocated(), "left_reserved": torch.cuda.memory_reserved()}


def prepare(engine: str, gpus: int, arguments: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """The run folder, the recipe, and what is set in it."""
    work = arguments.work
    output = work / f"run-{engine}-{gpus}"
    if not arguments.within or os.environ.get("RANK", "0") == "0":
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
    recipe.write_text("preset: paper\nmodel: {name: x}\ndata: {train: {path: x}}\n")
    return output, recipe, [*(f"{key}={value}" for key, value in settings.items()), *arguments.set]


def measure(engine: str, gpus: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One `gora run`, and what its results say."""
    output, recipe, overrides = prepare(engine, gpus, arguments)
    options = [part for value in overrides for part in ("--set", value)]
    command = [sys.executable, "-m", "gora", "run", str(recipe), f"--{arguments.device}", str(gpus), *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        failure = output / "failure.json"
        error = json.loads(failure.read_text())["message"] if failure.exists() else done.stderr[-3000:]
        return {"error": error, "seconds": seconds}
    return {"seconds": seconds, **outcome(output)}


def outcome(output: Path) -> dict[str, Any]:
    """What the results of a run say."""
    results = json.loads((output / "results.json").read_text())
    stages = [results[stage] for stage in ("precompute", "train") if stage in results]
    gradients = results.get("precompute")
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in logged if "loss" in line]
    return {
        "rates": rates,
        "late_rate": statistics.median(rates[len(rates) // 2 :]),
        "waiting": [line.get("waiting") for line in logged if "loss" in line],
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
    titles = ["targets", "engine", "GPUs", "precompute s", "tokens/s per GPU", "speed-up"]
    titles += ["training tokens/s per GPU", "speed-up", "all steps", "peak memory: precompute; training"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    alone = {row["targets"]: row for row in rows if row["gpus"] == 1 and "error" not in row}
    for row in rows:
        head = f"| {row['targets']} | {row['engine_asked']} | {row['gpus']} |"
        if "error" in row:
            lines.append(f"{head} failed: {row['error'].splitlines()[-1]} |")
            continue
        gpus, one = row["gpus"], alone.get(row["targets"])
        seconds = f"{one['gradient_seconds'] / row['gradient_seconds']:.2f}" if one else ""
        training = f"{row['late_rate'] / one['late_rate']:.2f}" if one else ""
        lines.append(
            f"{head} {row['gradient_seconds']:.1f} | {row['gradient_rate'] / gpus:,.0f} | {seconds} | "
            f"{row['late_rate'] / gpus:,.0f} | {training} | {row['train_rate'] / gpus:,.0f} | "
            f"{'; '.join(map(memory_text, row['memory']))} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
