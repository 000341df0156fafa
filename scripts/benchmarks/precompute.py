"""Time of one micro-batch of the gradient pass, against other ways of having the same gradients.

One GPU, one model with random weights (speed does not depend on their values), one process:

    python scripts/benchmarks/precompute.py --output precompute.json

What is timed, forward and backward together, for attention and for all-linear targets:

reference  a hook for each weight that synchronises, looks through the parameters, copies the gradient to the host and
           adds it there: the way of the method's first implementation
plain      autograd's own accumulation into `.grad`, in the weights' type
lora       forward and backward of PEFT's LoRA at rank 8, float32 adapter under bfloat16 autocast: a training step
           without its optimizer
gora       this project's collector, float32 sums on the device; small micro-batches replayed as a CUDA graph
gora-eager the same without the graph, where there is one
gora-cpu   the same with sums in pinned host memory
gora-held  the same, small micro-batches added several at a time, as `offload: auto` does with what does not fit

The floor is the larger of arithmetic and memory traffic of each product, at the rates measured at the start.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from ways import DEVICE, WAYS, shapes_of

from gora.core.importance import importance
from gora.core.initial import draw_a, solve_b
from gora.core.ranks import RankBounds, allocate
from gora.gradients.buffered import ENOUGH_TOKENS
from gora.gradients.replay import LONGEST
from gora.gradients.sums import DeviceSums, all_finite
from gora.models.targets import find_targets


def main() -> None:
    """Measure everything, print a table, write JSON."""
    arguments = _arguments()
    rates = measure_rates()
    print(f"{torch.cuda.get_device_name()}: {rates['flops'] / 1e12:.0f} TFLOP/s bf16, {rates['bytes'] / 1e12:.2f} TB/s")
    model = make_model(arguments.layers)
    rows = []
    for targets in arguments.targets:
        layers = find_targets(model, targets)
        for batch, length in (map(int, shape.split("x")) for shape in arguments.shapes):
            floor = floor_seconds(model, layers, batch, length, rates)
            for name in arguments.ways:
                if not differs(name, batch * length):
                    continue
                row = measure(name, model, layers, batch, length, arguments.steps)
                rows.append({"targets": targets, "batch": batch, "length": length, "way": name, "floor": floor, **row})
                print(line(rows[-1]), flush=True)
                write(arguments.output, rows, rates)
        if "gora" in arguments.ways:
            rows.append({"targets": targets, "way": "tail", **measure_tail(model, layers)})
            print(
                f"{targets:10} tail: {rows[-1]['seconds']:.2f} s for importance, ranks and initial values", flush=True
            )
    write(arguments.output, rows, rates)
    print("\n" + table(rows))


def differs(name: str, tokens: int) -> bool:
    """Whether a way is another one than its neighbour at this size."""
    small = {"gora-eager": LONGEST, "gora-held": ENOUGH_TOKENS // 2}
    return tokens <= small.get(name, tokens)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("precompute.json"))
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model; 32 is Llama-3.1-8B")
    parser.add_argument("--steps", type=int, default=12, help="timed micro-batches of each way but the slow reference")
    parser.add_argument("--targets", nargs="+", default=["attention", "all-linear"])
    parser.add_argument("--shapes", nargs="+", default=["1x512", "4x512", "8x1024"], help="rows x tokens")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args()


def make_model(layers: int) -> LlamaForCausalLM:
    """Llama-3.1-8B's shape with random bfloat16 weights on the GPU."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def measure_rates() -> dict[str, float]:
    """The device's rate of bfloat16 products (FLOP/s) and of copies (bytes read and written a second)."""
    left, right = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device=DEVICE)
    target = torch.empty_like(source)
    product = _median(lambda: left @ right, 10)
    copy = _median(lambda: target.copy_(source), 10)
    return {"flops": 2 * 8192**3 / product, "bytes": 8 * 2**30 / copy}


def floor_seconds(
    model: nn.Module, layers: dict[str, nn.Module], batch: int, length: int, rates: dict[str, float]
) -> float:
    """No implementation runs faster: forward, gradients of activations, and float32 accumulation for the targets."""
    tokens, config = batch * length, model.config
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 2 * length * config.hidden_size * config.num_hidden_layers
    passes = tokens * (2 * (2 * linear) + 3 * attention) / rates["flops"]
    weights = sum(layer.weight.numel() for layer in layers.values())
    return passes + max(2 * tokens * weights / rates["flops"], 8 * weights / rates["bytes"])


def measure(
    name: str, model: nn.Module, layers: dict[str, nn.Module], batch: int, length: int, steps: int
) -> dict[str, Any]:
    """Median, least and greatest seconds of a micro-batch, and peak memory in bytes."""
    ids = torch.randint(0, 128256, (batch, length), device=DEVICE)
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    gc.collect()
    torch.cuda.empty_cache()
    try:
        with WAYS[name](model, layers, batch * length) as step:
            warm, timed = (1, 1) if name == "reference" else (3, steps)
            torch.cuda.reset_peak_memory_stats()
            for _ in range(warm):
                step(inputs)
            torch.cuda.synchronize()
            seconds = []
            for _ in range(timed):
                start = time.perf_counter()
                step(inputs)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            flowing = seconds[0]
            if name != "reference":
                # A run does not wait for each micro-batch; neither does this second figure.
                start = time.perf_counter()
                for _ in range(timed):
                    step(inputs)
                torch.cuda.synchronize()
                flowing = (time.perf_counter() - start) / timed
            peak = torch.cuda.max_memory_allocated()
        return {
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "greatest": max(seconds),
            "flowing": flowing,
            "peak": peak,
        }
    except torch.OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0]}


def measure_tail(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Any]:
    """Seconds from collected sums to ranks and initial values."""
    gc.collect()
    torch.cuda.empty_cache()
    shapes = shapes_of(layers)
    sums = DeviceSums(shapes, DEVICE)
    for key, shape in shapes.items():
        sums.write(key, torch.randn(shape, device=DEVICE))

    def tail() -> None:
        assert all_finite(sums)
        importances = [importance(layers[name].weight, sums.read(name) / 64) for name in shapes]
        norms = [sums.read(name).norm().item() for name in shapes]
        assert len(norms) == len(shapes)
        ranks = allocate(importances, list(shapes.values()), 8, RankBounds(4, 32))
        for (name, shape), rank in zip(shapes.items(), ranks, strict=True):
            solve_b(sums.read(name) / 64, draw_a(name, rank, shape[1], 0), 0.05, 16.0).cpu()

    tail()
    torch.cuda.synchronize()
    start = time.perf_counter()
    tail()
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start}


def _median(work: Callable[[], Any], times: int) -> float:
    seconds = []
    for _ in range(times + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def write(path: Path, rows: list[dict[str, Any]], rates: dict[str, float]) -> None:
    """Write all rows so far, so that a run that is cut short leaves what it measured."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    document = {"gpu": torch.cuda.get_device_name(), "versions": versions, "rates": rates, "rows": rows}
    path.write_text(json.dumps(document, indent=2))


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    where = f"{row['targets']:10} {row['batch']}x{row['length']:<5} {row['way']:10}"
    if "error" in row:
        return f"{where} {row['error']}"
    return (
        f"{where} {row['seconds']:8.4f} s  flowing {row['flowing']:8.4f} s  peak {row['peak'] / 1e9:6.1f} GB  "
        f"{row['floor'] / row['flowing']:6.1%} of the floor's rate"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: one row for targets and shape, one column a way."""
    ways = list(dict.fromkeys(row["way"] for row in rows if row["way"] != "tail"))
    lines = ["| targets | shape | floor ms | " + " | ".join(ways) + " |", "|---" * (3 + len(ways)) + "|"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["way"] != "tail":
            cell = "out of memory" if "error" in row else f"{1000 * row['flowing']:.1f} ms, {row['peak'] / 1e9:.1f} GB"
            cells.setdefault(
                (row["targets"], f"{row['batch']}x{row['length']}"), {"floor": f"{1000 * row['floor']:.1f}"}
            )
            cells[row["targets"], f"{row['batch']}x{row['length']}"][row["way"]] = cell
    for (targets, shape), values in cells.items():
        lines.append(f"| {targets} | {shape} | " + " | ".join(values.get(key, "") for key in ("floor", *ways)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
