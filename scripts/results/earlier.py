"""Searches for the learning rate that other pages rest on, for docs/results.md: of SmolLM2 and of the 28M model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

from cells import SEEDS
from grids import DATA, Grid, Search, at, best
from names import NAMES, PUBLISHED, RANK_8, TABLE_2, table
from reading import interval, noise
from scipy import stats

STEPS = 150
LAYERS = ("all-linear", "attention")
LANGUAGE = ("math", "code", "instruction")
COMMON, SMALL_COMMON = 2e-4, "0.0003"
"""The one rate of the paper's protocol: read between the points of SmolLM2's searches; run on the 28M model."""
OF_28M = {
    "full": "full", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "lora+": "LoRA+", "olora": "OLoRA",
    "pissa": "PiSSA", "lora-ga": "LoRA-GA as in PEFT", "adalora": "AdaLoRA", "gora paper": "GoRA",
    "gora paper r32": "GoRA r32", "gora paper r128": "GoRA r128",
}  # fmt: skip
"""What docs/data/results.json calls the methods of the paper's Table 2."""


def pairs(grids: Mapping[Search, Grid], method: str, other: str) -> dict[Search, float]:
    """How much more loss one method ends with than another, each at its best rate, as a share, where both were run."""
    return {
        one: best(grids[one]) / best(grids[one._replace(method=other)]) - 1
        for one in grids
        if one.method == method and one._replace(method=other) in grids
    }


def layers(grids: Mapping[Search, Grid]) -> dict[Search, float]:
    """How much more loss all linear layers end with than attention, at the same number of parameters, as a share."""
    return {
        one: best(grids[one._replace(targets="all-linear")]) / best(grids[one]) - 1
        for one in grids
        if one.targets == "attention" and one._replace(targets="all-linear") in grids
    }


def answer(grids: Mapping[Search, Grid]) -> str:
    """How far GoRA is from LoRA, each at its best rate."""
    shares, published = list(pairs(grids, "gora auto", "lora").values()), pairs(grids, "gora paper", "lora").values()
    middle, low, high = (100 * value for value in interval(shares))
    verdict = "level with" if low < 0 < high else "behind" if low > 0 else "ahead of"
    return (
        f"**GoRA is {verdict} LoRA: with the settings of `preset: auto` it ends {middle:+.2f} % from it (95 % interval "
        f"{low:+.2f} to {high:+.2f} %; lower in {sum(value < 0 for value in shares)} of {len(shares)} comparisons), as "
        f"published {100 * statistics.fmean(published):+.2f} % (lower in {sum(value < 0 for value in published)} of "
        f"{len(published)}).** The same trained parameters, each method at the best of its own six or eight rates, one "
        "seed."
    )


def pairs_table(grids: Mapping[Search, Grid]) -> str:
    """GoRA beside LoRA, each at its best rate on the same rows."""
    lines = []
    for one, more in sorted(pairs(grids, "gora auto", "lora").items()):
        cells = [grids.get(one._replace(method=method)) for method in ("lora", "gora auto", "gora paper", "lora+")]
        losses_ = ["" if cell is None else f"{best(cell):.4f}" for cell in cells]
        lines.append([f"{one.rows}, {one.targets}, {one.steps} steps", *losses_, f"{100 * more:+.1f} %"])
    head = ["set, layers", *(NAMES[method] for method in ("lora", "gora auto", "gora paper", "lora+")), "GoRA to LoRA"]
    return table(head, lines)


def best_table(grids: Mapping[Search, Grid]) -> str:
    """The least loss of every method's rates, where it was searched; bold is what noise may make of the least one."""
    columns = [(rows, targets) for targets in LAYERS for rows in LANGUAGE]
    methods = list(dict.fromkeys(s.method for s in grids if s.steps == STEPS and (s.rows, s.targets) in columns))
    found = {
        method: [best(grids[one]) if (one := Search(*column, method, STEPS)) in grids else None for column in columns]
        for method in methods
    }
    least = [min(v for m, each in found.items() if m != "full" and (v := each[n])) for n in range(len(columns))]
    near = [loss * (1 + one_seed_noise(rows)) for loss, (rows, _) in zip(least, columns, strict=True)]
    lines = []
    for method in sorted(found, key=lambda method: [value or 9.0 for value in found[method]]):
        cells = ["" if value is None else f"{value:.4f}" for value in found[method]]
        tied = [value is not None and value <= near[n] for n, value in enumerate(found[method])]
        marked = [f"**{text}**" if tied[n] and method != "full" else text for n, text in enumerate(cells)]
        lines.append([NAMES[method], *marked])
    return table(["method", *(f"{rows}, {targets}" for rows, targets in columns)], lines)


def one_seed_noise(rows: str) -> float:
    """How far two methods lie apart by chance on one seed (95 %), as a share of the loss: as on the 28M model."""
    final = json.loads((DATA / "results.json").read_text(encoding="utf-8"))[rows]["final"]
    seeds = {name: {run["seed"]: run["loss"]["final"] for run in one["runs"]} for name, one in final.items()}
    spread = noise({name: values for name, values in seeds.items() if values.keys() == set(SEEDS)})
    assert spread is not None
    level = statistics.fmean(loss for values in seeds.values() for loss in values.values())
    return float(stats.t.ppf(0.975, spread.freedom)) * spread.deviation * 2**0.5 / level


def of_28m(rows: str) -> dict[str, dict[str, float]]:
    """Losses of the 28M model's search by method and rate; only those that came to an end."""
    searches = json.loads((DATA / "results.json").read_text(encoding="utf-8"))[rows]["search"]
    return {
        method: {rate: loss for rate, loss in searches[name].items() if loss is not None}
        for method, name in OF_28M.items()
    }


def at_one_rate(grids: Mapping[Search, Grid], rows: str) -> dict[str, float]:
    """SmolLM2's losses at the common rate, of the methods that have searches of that length."""
    mine = {
        s.method: grid for s, grid in grids.items() if (s.rows, s.targets) == (rows, "attention") and s.steps != STEPS
    }
    return {method: at(grid, COMMON) for method, grid in mine.items()}


def order_table(grids: Mapping[Search, Grid]) -> str:
    """At one rate for all, and at each one's best; the paper's own figures beside them."""
    small = {rows: of_28m(rows) for rows in ("math", "code")}
    smol = {rows: at_one_rate(grids, rows) for rows in ("math", "code")}
    lines = []
    for method in sorted(TABLE_2, key=lambda method: small["math"][method][SMALL_COMMON]):
        common = [f"{small[rows][method][SMALL_COMMON]:.3f}" for rows in small]
        own = [f"{min(small[rows][method].values()):.3f}" for rows in small]
        real = [f"{smol[rows][method]:.3f}" if method in smol[rows] else "" for rows in smol]
        lines.append([NAMES[method], *(f"{value:.2f}" for value in PUBLISHED[method]), *real, *common, *own])
    head = ["", "paper: GSM8K", "HumanEval", "SmolLM2, one rate: math", "code"]
    return table([*head, "28M, one rate: math", "code", "28M, own rates: math", "code"], lines)


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
