"""Whether the fast path trains as the plain one does: loss curves of the same rows in float32, in bfloat16, and packed
with fused kernels.

    python scripts/benchmarks/parity.py --steps 200 --output parity.json

Runs gora three times at the same time, from the same seed and on the same rows, epoch after epoch until there are so
many steps. Curves are smoothed over steps; the fast path has to stay as near to float32 as bfloat16 does anyway.

Without a GPU, gora does not compute in bfloat16. Here it is made to: the arithmetic of the fast path is then tried
without what needs a GPU, which are Liger's kernels, attention of all rows in one kernel and recorded passes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PLAIN = ["data.packing=none", "train.kernels=none"]
WAYS = {
    "float32": [*PLAIN, "model.dtype=float32", "train.precision=fp32"],
    "bfloat16": [*PLAIN, "model.dtype=bfloat16", "train.precision=bf16"],
    "fast": ["data.packing=packed", "train.kernels=auto", "model.dtype=bfloat16", "train.precision=bf16"],
}


def main() -> None:
    """Run all three at the same time, compare, print a table, write JSON."""
    arguments = _arguments()
    if arguments.only:
        run_here(arguments.only, arguments)
        return
    command = [sys.executable, *sys.argv, "--only"]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    runs = {way: subprocess.Popen([*command, way], **pipes) for way in WAYS}
    for way, run in runs.items():
        _, errors = run.communicate()
        if run.returncode:
            sys.exit(f"{way}: {errors[-2000:]}")
    facts = {way: read(arguments.work / way, arguments.steps) for way in WAYS}
    compared = {way: apart(facts[way], facts["float32"], arguments.smooth) for way in WAYS}
    result = {"device": _device(), "settings": settings_of(arguments), "compared": compared, "runs": facts}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    titles = ("way", "largest difference of the smoothed loss", "mean", "evaluation loss", "same ranks")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for way, values in compared.items():
        print(
            f"| {way} | {values['largest']:.2%} | {values['mean']:.2%} | {facts[way]['eval']:.4f} | "
            f"{facts[way]['ranks'] == facts['float32']['ranks']} |"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("parity.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-parity"))
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--smooth", type=int, default=20, help="steps whose mean is compared")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    parser.add_argument("--only", choices=WAYS, help="one run, in this process")
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """What all runs are told; an epoch has a step at least, so that as many epochs have all steps."""
    steps = [f"train.max_steps={arguments.steps}", f"train.epochs={arguments.steps}", "train.log_steps=1"]
    return [*steps, "evaluation.steps=null", *arguments.set]


def run_here(way: str, arguments: argparse.Namespace) -> None:
    """One run, as `gora run` makes it."""
    from gora.recipe import load_recipe
    from gora.runs import context
    from gora.stages.run import run

    if not torch.cuda.is_available():
        context.resolve_precision = lambda wanted, device: "bf16" if wanted == "bf16" else "fp32"
        # Which `auto` takes beside a GPU alone.
        WAYS["fast"].append("train.kernels=fused")
    settings = [*settings_of(arguments), *WAYS[way], f"output={arguments.work / way}"]
    run(load_recipe(arguments.recipe, settings).recipe, mode="overwrite")


def read(folder: Path, steps: int) -> dict[str, Any]:
    """Losses of the steps, evaluation loss and ranks of a run; exits if it had fewer steps."""
    from gora.plan import read_plan

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    if len(lines) != steps:
        sys.exit(f"{folder} has {len(lines)} steps of {steps}.")
    return {
        "losses": [line["loss"] for line in lines],
        "rows": [line["rows"] for line in lines],
        "rates": [line["tokens_per_second"] for line in lines],
        "eval": json.loads((folder / "results.json").read_text(encoding="utf-8"))["loss"]["final"],
        "ranks": {module.name: module.rank for module in read_plan(folder / "plan.safetensors").modules},
    }


def apart(run: dict[str, Any], other: dict[str, Any], smooth: int) -> dict[str, float]:
    """How far a smoothed curve is from another, relative to it."""
    pairs = [
        (sum(run["losses"][at : at + smooth]), sum(other["losses"][at : at + smooth]))
        for at in range(len(run["losses"]) - smooth + 1)
    ]
    differences = [abs(mine - theirs) / theirs for mine, theirs in pairs]
    return {"largest": max(differences), "mean": sum(differences) / len(differences)}


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
