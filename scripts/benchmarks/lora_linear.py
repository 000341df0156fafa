"""GPU time of one linear layer with LoRA, both passes, by rank: gora's way, and plain products.

    python scripts/benchmarks/lora_linear.py --output lora-linear.json

Layers of Llama-3.1-8B's shapes in bfloat16 on 4096 tokens. Five passes are recorded as a CUDA graph, so that no launch
counts; medians of eight replays. `plain` casts A and B and multiplies, `filled` does so with ranks filled up to a
multiple of 8, `gora` is the function of `gora/adapters/lean.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from in_memory import card, versions
from torch import Tensor
from torch.nn.functional import linear, pad

from gora.adapters.lean import _LowRank

TOKENS, PASSES, REPLAYS = 4096, 5, 8
SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Measure every shape and rank, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("lora-linear.json"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 5, 6, 7, 8, 10, 12, 16, 32])
    arguments = parser.parse_args()
    device, rows = torch.device("cuda"), []
    print("| out x in | rank | base alone | plain | filled | gora | (microseconds)\n|---|---|---|---|---|---|")
    for out, width in SHAPES:
        x = torch.randn(TOKENS, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(out, width, device=device, dtype=torch.bfloat16) * 0.02
        base = timed(lambda x, weight, a, b: linear(x, weight), x, weight, None)
        for rank in arguments.ranks:
            pair = torch.randn(rank, width, device=device), torch.randn(out, rank, device=device)
            factors = tuple(value.requires_grad_(True) for value in pair)
            row = {"out": out, "in": width, "rank": rank, "base": base}
            row |= {name: timed(way, x, weight, factors) for name, way in WAYS.items()}
            rows.append(row)
            print(f"| {out} x {width} | {rank} | " + " | ".join(f"{row[key]:.0f}" for key in ("base", *WAYS)) + " |")
    document = {"card": card(device), "versions": versions(), "rows": rows}
    arguments.output.write_text(json.dumps(document, indent=1))


def plain(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W x + 2 B A x."""
    return linear(x, weight) + linear(linear(x, a.to(x.dtype)), (b * 2).to(x.dtype))


def filled(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same at a rank that is a multiple of 8."""
    missing = -len(a) % 8
    return linear(x, weight) + linear(
        linear(x, pad(a.to(x.dtype), (0, 0, 0, missing))), pad((b * 2).to(x.dtype), (0, missing))
    )


def gora(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """In one function of autograd."""
    result: Tensor = _LowRank.apply(x, weight, None, a, b, 2.0)
    return result


WAYS: dict[str, Layer] = {"plain": plain, "filled": filled, "gora": gora}


def timed(way: Layer, x: Tensor, weight: Tensor, factors: tuple[Tensor, ...] | None) -> float:
    """Microseconds of both passes."""
    upstream = torch.randn(TOKENS, len(weight), device=x.device, dtype=x.dtype)
    a, b = factors or (x, x)
    wanted = (x, *(factors or ()))

    def passes() -> None:
        torch.autograd.grad(way(x, weight, a, b), wanted, upstream)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            passes()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PASSES):
            passes()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / PASSES * 1e3)
    return round(statistics.median(times), 1)


if __name__ == "__main__":
    main()
