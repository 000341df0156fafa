"""Whether the fast path trains as the plain one does: loss curves of the same rows in float32, in bfloat16, and packed
with fused kernels.

    python scripts/benchmarks/parity.py --steps 200 --output parity.json

Runs `gora run` three times, from the same seed and on the same rows. Curves are smoothed over steps; the fast path has
to stay as near to float32 as bfloat16 does anyway.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAIN = ["data.packing=none", "train.kernels=none"]
WAYS = {
    "float32": [*PLAIN, "model.dtype=float32", "train.precision=fp32"],
    "bfloat16": [*PLAIN, "model.dtype=bfloat16", "train.precision=bf16"],
    "fast": ["data.packing=packed", "train.kernels=auto", "model.dtype=bfloat16", "train.precision=bf16"],
}


def main() -> None:
    """Run all three at the same time, compare, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("parity.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-parity"))
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--smooth", type=int, default=20, help="steps whose mean is compared")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    arguments = parser.parse_args()
    runs = {way: start(way, arguments) for way in WAYS}
    for way, run in runs.items():
        _, errors = run.communicate()
        if run.returncode:
            sys.exit(f"{way}: {errors[-2000:]}")
    facts = {way: read(arguments.work / way) for way in WAYS}
    compared = {way: apart(facts[way], facts["float32"], arguments.smooth) for way in WAYS}
    arguments.output.write_text(json.dumps({"compared": compared, "runs": facts}, indent=1))
    titles = ("way", "largest difference of the smoothed loss", "mean", "evaluation loss", "same ranks")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for way, values in compared.items():
        print(
            f"| {way} | {values['largest']:.2%} | {values['mean']:.2%} | {facts[way]['eval']:.4f} | "
            f"{facts[way]['ranks'] == facts['float32']['ranks']} |"
        )


def start(way: str, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """One run."""
    settings = [*WAYS[way], f"train.max_steps={arguments.steps}", "train.log_steps=1", "evaluation.steps=null"]
    settings += [f"output={arguments.work / way}", *arguments.set]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "gora", "run", arguments.recipe, "--overwrite", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def read(folder: Path) -> dict[str, Any]:
    """Losses of the steps, evaluation loss and ranks of a run."""
    from gora.plan import read_plan

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ranks = {module.name: module.rank for module in read_plan(folder / "plan.safetensors").modules}
    return {
        "losses": [line["loss"] for line in lines if "loss" in line],
        "rates": [line["tokens_per_second"] for line in lines if "loss" in line],
        "eval": json.loads((folder / "results.json").read_text(encoding="utf-8"))["loss"]["final"],
        "ranks": ranks,
    }


def apart(run: dict[str, Any], other: dict[str, Any], smooth: int) -> dict[str, float]:
    """How far a smoothed curve is from another, relative to it."""
    pairs = [
        (sum(run["losses"][at : at + smooth]), sum(other["losses"][at : at + smooth]))
        for at in range(len(run["losses"]) - smooth + 1)
    ]
    differences = [abs(mine - theirs) / theirs for mine, theirs in pairs]
    return {"largest": max(differences), "mean": sum(differences) / len(differences)}


if __name__ == "__main__":
    main()
