"""Precompute and training steps of an 8B-shaped model on one GPU and on several, under the engines.

    python scripts/benchmarks/distributed.py --gpus 1 2 --engines ddp zero2-offload --output distributed.json

Writes a Llama-3.1-8B with random bfloat16 weights and rows of about 1024 tokens to a working folder, and runs
`gora run` on them as a user would: rank 8, micro-batches of 4 rows. One process is measured under the first engine
only. The rate of the gradient pass is over the whole pass; that of training is the median of the steps of the second
half, and beside it the one of all steps, in which lengths are recorded and kernels loaded.

With `--together`, all runs of a number of GPUs are made one after the other by the same processes, which saves their
start; host memory is then the most that any run so far has taken, and what the parts of a run take is measured as well.
`--runs` names runs one by one, with settings of their own:

    python scripts/benchmarks/distributed.py --gpus 4 --together --runs "ddp attention gora.steps=256" "fsdp attention"
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

from distributed_table import table, versions
from llama import make_model, make_rows

_ROW = "row "
Cell = tuple[str, str, tuple[str, ...]]
"""Engine, targets, and settings of a run."""


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
    parser.add_argument("--runs", nargs="+", default=[], help="instead: 'ENGINE TARGETS SETTING ...' of each run")
    parser.add_argument("--together", action="store_true", help="all runs of a number of GPUs in the same processes")
    parser.add_argument("--within", type=int, default=0, help="this is one of so many processes that make the runs")
    parser.add_argument("--unchecked", action="store_true", help="take no fingerprints of weights (with --together)")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    return parser.parse_args()


def runs_of(gpus: int, arguments: argparse.Namespace) -> Iterator[Cell]:
    """The runs of a number of GPUs."""
    for run in arguments.runs:
        engine, targets, *settings = run.split()
        yield engine, targets, tuple(settings)
    if not arguments.runs:
        engines = arguments.engines if gpus > 1 else arguments.engines[:1]
        yield from ((engine, targets, ()) for targets in arguments.targets for engine in engines)


def known_of(gpus: int, cell: Cell) -> dict[str, Any]:
    """What is known of a run before it is made."""
    engine, targets, settings = cell
    return {"engine_asked": engine, "targets": targets, "gpus": gpus, "settings": list(settings)}


def apart(gpus: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each run by a command of its own."""
    for cell in runs_of(gpus, arguments):
        yield known_of(gpus, cell) | measure(cell, gpus, arguments)


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
    from distributed_parts import leave_weights_unchecked, measured

    from gora.recipe import load_recipe
    from gora.runtime.out_of_memory import release_memory
    from gora.runtime.world import join
    from gora.stages.run import run

    world = join(alone_too=arguments.within > 1)
    if arguments.unchecked:
        leave_weights_unchecked()
    for cell in runs_of(arguments.within, arguments):
        output, recipe, overrides = prepare(cell, arguments.within, arguments)
        world.barrier()
        start, row = time.perf_counter(), known_of(arguments.within, cell)
        with measured() as parts:
            try:
                run(load_recipe(str(recipe), overrides).recipe)
            except Exception as error:  # one run of several
                row["error"] = f"{type(error).__name__}: {error}"
        row["seconds"] = time.perf_counter() - start
        row |= parts.of_all(world)
        if world.main and "error" not in row:
            row |= outcome(output)
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


def prepare(cell: Cell, gpus: int, arguments: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """The run folder, the recipe, and what is set in it."""
    (engine, targets, given), work = cell, arguments.work
    output = work / f"run-{engine}-{targets}-{gpus}"
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
        "adapter.targets": targets,
        "distributed": engine,
        "output": output,
    }
    recipe = work / "recipe.yaml"
    recipe.write_text("preset: paper\nmodel: {name: x}\ndata: {train: {path: x}}\n")
    return output, recipe, [*(f"{key}={value}" for key, value in settings.items()), *arguments.set, *given]


def measure(cell: Cell, gpus: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One `gora run`, and what its results say."""
    output, recipe, overrides = prepare(cell, gpus, arguments)
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
        "micro_batches": gradients["micro_batches"] if gradients else 0,
        "gradient_seconds": gradients["seconds"]["gradients"] if gradients else 0.0,
        "gradient_rate": gradients["tokens_per_second"] if gradients else 0.0,
        "train_seconds": results["train"]["seconds"],
        "train_rate": results["train"]["tokens_per_second"],
        "engine": results["train"]["runs_as"],
        "sums": gradients["sums"] if gradients else None,
        "memory": [stage["peak_bytes"] for stage in stages],
        "losses": [line.get("loss") for line in logged],
    }


if __name__ == "__main__":
    main()
