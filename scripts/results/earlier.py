"""Searches for the learning rate that other pages rest on, for docs/results.md: of SmolLM2 and of the 28M model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from grids import DATA, Grid, Search, best
from names import NAMES, PUBLISHED, RANK_8, TABLE_2, table
from scipy import stats

LANGUAGE = ("math", "code", "instruction")
SMALL_COMMON = "0.0003"
"""The one rate of the paper's protocol, run on the 28M model."""
OF_28M = {
    "full": "full", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "lora+": "LoRA+", "olora": "OLoRA",
    "pissa": "PiSSA", "lora-ga": "LoRA-GA as in PEFT", "adalora": "AdaLoRA", "gora paper": "GoRA",
    "gora paper r32": "GoRA r32", "gora paper r128": "GoRA r128",
}  # fmt: skip
"""What docs/data/results.json calls the methods of the paper's Table 2."""


def layers(grids: Mapping[Search, Grid]) -> dict[Search, float]:
    """How much more loss all linear layers end with than attention, at the same number of parameters, as a share."""
    return {
        one: best(grids[one._replace(targets="all-linear")]) / best(grids[one]) - 1
        for one in grids
        if one.targets == "attention" and one._replace(targets="all-linear") in grids
    }


def of_28m(rows: str) -> dict[str, dict[str, float]]:
    """Losses of the 28M model's search by method and rate; only those that came to an end."""
    searches = json.loads((DATA / "results.json").read_text(encoding="utf-8"))[rows]["search"]
    return {
        method: {rate: loss for rate, loss in searches[name].items() if loss is not None}
        for method, name in OF_28M.items()
    }


def losses_of_28m(rows: str, *, own: bool, methods: Sequence[str]) -> dict[str, float]:
    """Of methods, at their own best rates or at the common one."""
    found = of_28m(rows)
    return {method: min(found[method].values()) if own else found[method][SMALL_COMMON] for method in methods}


def agreements(*, own: bool) -> list[float]:
    """Rank correlations of the 28M model's losses on math and code with the paper's GSM8K and HumanEval."""
    methods = RANK_8 if own else TABLE_2
    return [
        agreement(losses_of_28m(rows, own=own, methods=methods), score) for score, rows in enumerate(("math", "code"))
    ]


def agreement(values: Mapping[str, float], score: int) -> float:
    """Rank correlation of losses with the paper's scores (0: GSM8K, 1: HumanEval); 1 is one order."""
    methods = [method for method in TABLE_2 if method in values]
    return float(stats.spearmanr([values[m] for m in methods], [-PUBLISHED[m][score] for m in methods]).statistic)


def searches_table(grids: Mapping[Search, Grid]) -> str:
    """Every search: its rates and losses."""
    lines = []
    for one, grid in sorted(grids.items()):
        least = best(grid)
        told = [
            f"{rate:.3g}: " + (f"**{loss:.4f}**" if loss == least else f"{loss:.4f}") for rate, loss in grid.items()
        ]
        lines.append([f"{one.rows}, {one.targets}", NAMES[one.method], str(one.steps), ", ".join(told)])
    return table(["set, layers", "method", "steps", "loss by rate"], lines)
