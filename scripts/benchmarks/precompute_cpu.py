"""The quickstart's gradient pass on a CPU against plain autograd accumulation: time and peak memory.

    python scripts/benchmarks/precompute_cpu.py --rounds 3

Each measurement is a process of its own; the two ways alternate, and what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

STEPS = 8


def measure(way: str) -> None:
    """Run one way in this process and print seconds and peak bytes."""
    import torch

    from gora import mean_gradients
    from gora.planning.gradient_pass import MicroBatches
    from gora.recipe import load_recipe
    from gora.runs.base_model import load_base_model
    from gora.runs.context import RunContext
    from gora.runs.targets import settle_targets

    context = RunContext.alone(load_recipe("quickstart", [f"gora.steps={STEPS}"]).recipe)
    model, batches = load_base_model(context), MicroBatches(context)
    targets = settle_targets(context, model)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch, use_cache=False).loss

    loss_of(batches[0])
    start = time.perf_counter()
    if way == "plain":
        for module in targets.values():
            module.weight.requires_grad_(True)
        for index in range(STEPS):
            loss_of(batches[index]).backward()
    else:
        mean_gradients(model, targets, map(batches.__getitem__, range(STEPS)), loss_of)
    seconds = time.perf_counter() - start
    print("measured", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Alternate the two ways and print the ratios."""
    parser = argparse.ArgumentParser(description="gradient pass on a CPU against plain autograd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=["plain", "gora"])
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way)
        return
    ratios, peaks = [], {"plain": [], "gora": []}
    for number in range(arguments.rounds):
        seconds = {}
        for way in ("plain", "gora") if number % 2 == 0 else ("gora", "plain"):
            command = [sys.executable, __file__, "--way", way]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            words = next(line for line in printed.splitlines() if line.startswith("measured")).split()
            seconds[way], peak = float(words[1]), int(words[2])
            peaks[way].append(peak)
        ratios.append(seconds["gora"] / seconds["plain"])
        print(f"plain {seconds['plain']:.2f} s, gora {seconds['gora']:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print("peak memory " + ", ".join(f"{way} {statistics.median(found) / 1e6:.0f} MB" for way, found in peaks.items()))


if __name__ == "__main__":
    main()
