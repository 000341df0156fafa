"""The gradient pass on rows of mixed lengths, from end to end: padded, and rows end to end, on one GPU.

    python scripts/benchmarks/gradient_rows.py --rows math=gsm8k/train.jsonl --output gradient-rows.json

The models and rows are those of `training.py`, the pass is gora's own, with micro-batches of 8 rows and sums on the
GPU. A rate counts tokens of rows, padding left out. Each setting makes its pass twice: the first also loads kernels and
takes memory, as that of a run does; the second has both. `seconds` are those of the calls, trial pass and all. `apart`
is the relative difference of mean gradients to those of the first way, the mean over some layers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from in_memory import (
    SHAPES,
    card,
    clear,
    context_of,
    drawn,
    finish,
    lengths,
    logging_into,
    make_model,
    restore,
    the_device,
    versions,
)
from transformers import LlamaForCausalLM

from gora.data import Examples
from gora.plan import ModelIdentity
from gora.planning import gradient_pass
from gora.planning.gradient_pass import collect_gradients
from gora.planning.micro_batches import MicroBatches
from gora.runs.base_model import speed_up
from gora.runs.context import RunContext

IDENTITY = ModelIdentity(name="random", config="0" * 64, weights="0" * 64)
PADDED, KERNELS = {"data.packing": "none", "train.kernels": "none"}, {"data.packing": "none"}
WAYS: dict[str, dict[str, Any]] = {
    "padded, unrecorded": PADDED,
    "padded, kernels, unrecorded": KERNELS,
    "padded": PADDED,
    "padded, kernels": KERNELS,
    "end to end, each alone, unrecorded": {},
    "end to end, unrecorded": {},
    "end to end": {},
    "end to end, 16 rows, unrecorded": {"gora.micro_batch_size": 16},
    "end to end, until settled": {"gora.steps": "auto"},
}
"""Settings by name; which passes are recorded and whether micro-batches share passes is in the name."""


def main() -> None:
    """Measure every setting; print and write JSON after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gradient-rows.json"))
    parser.add_argument("--rows", nargs="+", required=True, help="NAME=FILE of JSON lines, as for training.py")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "135m"])
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[32], help="of all shapes, or of each")
    arguments = parser.parse_args()
    device = the_device()
    results: list[dict[str, Any]] = []
    counts = arguments.micro_batches
    for shape, steps in zip(arguments.shapes, counts * (len(arguments.shapes) // len(counts)), strict=True):
        model = make_model(shape, device).eval()
        for name, _, path in (each.partition("=") for each in arguments.rows):
            rows = drawn(lengths(Path(path)), int(SHAPES[shape]["vocab_size"]))
            for targets in arguments.targets:
                first: dict[str, torch.Tensor] = {}
                for way in arguments.ways:
                    row = {"shape": shape, "rows": name, "targets": targets, "way": way}
                    try:
                        row |= measure(model, rows, targets, way, steps, first)
                    except Exception as error:  # one setting less, and said so
                        row["error"] = f"{type(error).__name__}: {error}"[:500]
                    restore(model)
                    results.append(row)
                    print(json.dumps(row), flush=True)
                    facts = {"card": card(device), "versions": versions(), "command": sys.argv[1:]}
                    arguments.output.write_text(json.dumps({**facts, "results": results}, indent=1))
        del model
        clear()


def measure(
    model: LlamaForCausalLM, rows: Examples, targets: str, way: str, steps: int, first: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Rates of both passes, memory, and what share of the tokens would be padding; `first` is filled by the first."""
    found: dict[str, Any] = {"rates": [], "seconds": [], "log": []}
    settings = {
        "adapter.targets": targets,
        "gora.steps": steps,
        "gora.micro_batch_size": 8,
        "gora.offload": "none",
        "data.packing": "auto",
        "train.kernels": "auto",
        **WAYS[way],
    }
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, logging_into(found["log"]), passes(way):
        for number in range(2):
            context = context_of(model, rows, settings, Path(folder) / str(number))
            if number == 0:
                speed_up(context, model)
                found["padding"] = padding(MicroBatches(context), rows)
            seconds, rate, micro_batches, means = one_pass(context, model)
            found["seconds"].append(seconds)
            found["rates"].append(rate)
            found["micro_batches"] = micro_batches
        first.update({name: means[name] for name in means if name not in first})
        apart = [((means[name] - first[name]).norm() / first[name].norm()).item() for name in means]
        found["apart"] = sum(apart) / len(apart)
        found["memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return found


def one_pass(context: RunContext, model: LlamaForCausalLM) -> tuple[float, float, int, dict[str, torch.Tensor]]:
    """Seconds, tokens per second, micro-batches, and the mean gradients of some layers."""
    layers = {name: model.get_submodule(name) for name in context.chosen.layers}
    began = time.perf_counter()
    collected = collect_gradients(context, model, layers, IDENTITY, low_memory=False)
    finish()
    seconds = time.perf_counter() - began
    some = list(layers)[:: len(layers) // 8]
    means = {name: collected.statistics.mean(name) for name in some}
    return seconds, collected.facts["tokens_per_second"], collected.counted, means


@contextmanager
def passes(way: str) -> Iterator[None]:
    """Inside the block, whether passes are recorded and shared as the name says."""
    own, shared = gradient_pass.recorder_of, MicroBatches.share_passes
    if "unrecorded" in way:
        gradient_pass.recorder_of = lambda *arguments: None
    if "alone" in way:
        MicroBatches.share_passes = False  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        gradient_pass.recorder_of, MicroBatches.share_passes = own, shared  # type: ignore[method-assign]


def padding(batches: MicroBatches, rows: Examples) -> float:
    """Share of the tokens of padded micro-batches that is padding."""
    drawn_rows = [batches._rows(index) for index in range(batches.steps)]
    computed = sum(len(each) * max(rows.lengths[row] for row in each) for each in drawn_rows)
    return 1 - sum(map(batches.tokens, range(batches.steps))) / computed


if __name__ == "__main__":
    main()
