"""Searches for the learning rate on SmolLM2 that were made for other pages, as one file for docs/results.md.

    python scripts/results/grids.py JUDGED...        # what scripts/rates/judge.py wrote

Each combination of set, layers and method was run at six rates; those that share set and number of steps saw the same
rows with the same seed. The searches of docs/data/learning-rate.json, at eight rates, are read as they are.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[2] / "docs" / "data"
FILE = DATA / "evidence-grids.json"
_NAMES = {"gora": "gora paper", "gora-one": "gora auto", "all": "all-linear", "instr": "instruction"}
"""What methods, layers and sets of docs/data/learning-rate.json are called here."""


class Search(NamedTuple):
    """What was searched; `gora auto` has equal ranks and one rate, `gora paper` the published ranks and 16 for B."""

    rows: str
    targets: str
    method: str
    steps: int


Grid = dict[float, float]
"""Eval loss by rate; infinite where training fell apart."""


def read_grids() -> dict[Search, Grid]:
    """All searches on SmolLM2."""
    found = {}
    for one in json.loads(FILE.read_text(encoding="utf-8")):
        found[Search(one["set"], one["targets"], one["method"], one["steps"])] = {
            rate: math.inf if loss is None else loss for rate, loss in zip(one["rates"], one["loss"], strict=True)
        }
    for one in json.loads((DATA / "learning-rate.json").read_text(encoding="utf-8"))["searches"]:
        names = (_NAMES.get(one[key], one[key]) for key in ("set", "targets", "method"))
        found[Search(*names, one["steps"])] = dict(zip(one["rates"], one["loss"], strict=True))
    return found


def best(grid: Grid) -> float:
    """The least loss that was measured."""
    return min(grid.values())


def at(grid: Grid, rate: float) -> float:
    """The loss at a rate between two of a grid, linear in the logarithm of the rate."""
    below, above = (max(r for r in grid if r <= rate), min(r for r in grid if r >= rate))
    share = 0.0 if below == above else math.log(rate / below) / math.log(above / below)
    return grid[below] * (1 - share) + grid[above] * share


def main() -> None:
    """Those combinations of the judge that are about SmolLM2."""
    searches = []
    for path in map(Path, sys.argv[1:]):
        for name, runs in json.loads(path.read_text(encoding="utf-8")).items():
            model, rows, targets, rest = name.split(" ", 3)
            method, _, steps = rest.rpartition(" ")
            if model != "smollm2":
                continue
            losses = {run["rate"]: run["loss"]["final"] if "loss" in run else None for run in runs}
            searches.append(
                {
                    "set": rows,
                    "targets": "all-linear" if targets == "auto" else targets,
                    "method": "gora auto" if method == "gora" else method,
                    "steps": int(steps),
                    "base": next(run["loss"]["base"] for run in runs if "loss" in run),
                    "found": next(run["rate"] for run in runs if run.get("auto")),
                    "rates": sorted(losses),
                    "loss": [losses[rate] for rate in sorted(losses)],
                }
            )
    FILE.write_text(json.dumps(searches, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
