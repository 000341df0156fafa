"""Writes the tables and the picture of docs/results.md, its appendix and the README from the raw runs.

    python scripts/results/page.py

Sentences are written by hand; `tests/scripts/test_results_page.py` recomputes what they claim.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from cells import AUTO, AUTO_LORA, SEARCHED, SEEDS, TOOLS, Found
from evidence import RECIPES
from grids import DATA, Grid, Search, at, best, read_grids
from names import NAMES, PUBLISHED, table, title
from picture import rates_picture
from reading import interval, losses, mean, noise, read, tool_cells, tools_over_auto
from runs import accuracy_table
from scipy import stats
from sets import TRAIN

ROOT = Path(__file__).parents[2]
PAGE, APPENDIX, README = ROOT / "docs" / "results.md", ROOT / "docs" / "results-appendix.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "results-rates.svg"
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
RANK_8 = tuple(method for method in OF_28M if method not in ("full", "gora paper r32", "gora paper r128"))


def compared(found: Found) -> list[str]:
    """The sets on which the preset was run, and so can be compared."""
    return [rows for rows in SEARCHED if losses(found, tool_cells(rows, AUTO))]


def tools_table(found: Found) -> str:
    """Loss with each tool's settings, trained parameters, steps, and how much more than the preset's."""
    lines = []
    for name in (AUTO, AUTO_LORA, *TOOLS):
        values = [losses(found, tool_cells(rows, name)) for rows in compared(found)]
        more = list(tools_over_auto(found, name, compared(found)).values())
        run = found[str(tool_cells("math", name)[0])]
        lines.append(
            [
                NAMES[name],
                f"{run['trainable'] / 1e6:.2f} M",
                str(math.ceil(TRAIN / batch_of(name))),
                f"{run['rate']:g}" if name in TOOLS else "found",
                *(f"{mean(each):.3f}" if each else "" for each in values),
                "" if name == AUTO else f"{100 * statistics.fmean(more):+.1f} %",
            ]
        )
    return table(["settings", "trained", "steps", "rate", *map(title, compared(found)), "over `auto`, mean"], lines)


def batch_of(name: str) -> int:
    """Rows in a step."""
    if name not in TOOLS:
        return 16
    written_ = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return int(written_["train"]["batch_size"])


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
    return float(stats.t.ppf(0.975, spread.freedom)) * spread.deviation * math.sqrt(2) / level


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


def pairs_table(grids: Mapping[Search, Grid]) -> str:
    """GoRA beside LoRA, each at its best rate on the same rows."""
    lines = []
    for one, more in sorted(pairs(grids, "gora auto", "lora").items()):
        cells = [grids.get(one._replace(method=method)) for method in ("lora", "gora auto", "gora paper", "lora+")]
        losses_ = ["" if cell is None else f"{best(cell):.4f}" for cell in cells]
        lines.append([f"{one.rows}, {one.targets}, {one.steps} steps", *losses_, f"{100 * more:+.1f} %"])
    head = ["set, layers", *(NAMES[method] for method in ("lora", "gora auto", "gora paper", "lora+")), "GoRA to LoRA"]
    return table(head, lines)


def of_28m(rows: str) -> dict[str, dict[str, float]]:
    """Losses of the 28M model's search by method and rate; only those that came to an end."""
    searches = json.loads((DATA / "results.json").read_text(encoding="utf-8"))[rows]["search"]
    return {
        method: {rate: loss for rate, loss in searches[name].items() if loss is not None}
        for method, name in OF_28M.items()
    }


def one_rate(grids: Mapping[Search, Grid], rows: str) -> dict[str, float]:
    """SmolLM2's losses at the common rate, of the methods that have searches of that length."""
    mine = {
        s.method: grid for s, grid in grids.items() if (s.rows, s.targets) == (rows, "attention") and s.steps != STEPS
    }
    return {method: at(grid, COMMON) for method, grid in mine.items()}


def order_table(grids: Mapping[Search, Grid]) -> str:
    """At one rate for all, and at each one's best; the paper's own figures beside them."""
    small = {rows: of_28m(rows) for rows in ("math", "code")}
    smol = {rows: one_rate(grids, rows) for rows in ("math", "code")}
    lines = []
    for method in sorted(OF_28M, key=lambda method: small["math"][method][SMALL_COMMON]):
        common = [f"{small[rows][method][SMALL_COMMON]:.3f}" for rows in small]
        own = [f"{min(small[rows][method].values()):.3f}" for rows in small]
        real = [f"{smol[rows][method]:.3f}" if method in smol[rows] else "" for rows in smol]
        lines.append([NAMES[method], *(f"{value:.2f}" for value in PUBLISHED[method]), *real, *common, *own])
    head = ["", "paper: GSM8K", "HumanEval", "SmolLM2, one rate: math", "code"]
    return table([*head, "28M, one rate: math", "code", "28M, own rates: math", "code"], lines)


def agreement(rows: str, score: int, own_rates: bool, methods: Sequence[str] = tuple(OF_28M)) -> float:
    """Rank correlation of the 28M model's losses with the paper's scores (0: GSM8K, 1: HumanEval); 1 is one order."""
    found = of_28m(rows)
    mine = [min(found[method].values()) if own_rates else found[method][SMALL_COMMON] for method in methods]
    return float(stats.spearmanr(mine, [-PUBLISHED[method][score] for method in methods]).statistic)


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


def expected_table(found: Found) -> str:
    """Five lines for the README."""
    names = (AUTO, AUTO_LORA, "axolotl", "unsloth")
    lines = [
        [NAMES[name], *(f"{mean(values):.3f}" if (values := losses(found, tool_cells(rows, name))) else ""
                        for rows in compared(found))]
        for name in names
    ]  # fmt: skip
    means = [tools_mean(found, rows) for rows in compared(found)]
    lines.append(["mean of five tools' defaults", *(f"{value:.3f}" for value in means)])
    return table(["eval loss after 2,400 rows", *map(title, compared(found))], lines)


def tools_mean(found: Found, rows: str) -> float:
    """Mean loss of the tools that were run on a set."""
    return statistics.fmean(mean(values) for name in TOOLS if (values := losses(found, tool_cells(rows, name))))


def parts(found: Found, grids: Mapping[Search, Grid]) -> dict[Path, dict[str, Callable[[], str]]]:
    """What is written where."""
    return {
        PAGE: {
            "tools": partial(tools_table, found),
            "best": partial(best_table, grids),
            "pairs": partial(pairs_table, grids),
            "order": partial(order_table, grids),
        },
        APPENDIX: {"accuracies": partial(accuracy_table, found), "searches": partial(searches_table, grids)},
        README: {"expect": partial(expected_table, found)},
    }


def filled(text: str, name: str, part: str) -> str:
    """A page with one of its parts written again; raises SystemExit where it has no such part."""
    pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(\n<!-- end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda match: match[1] + part + match[2], text)
    if count != 1:
        raise SystemExit(f"There must be one part {name!r}, not {count}.")
    return changed


def written(path: Path, made: Mapping[str, Callable[[], str]]) -> str:
    """A page with all of its parts as they are today."""
    text = path.read_text(encoding="utf-8")
    for name, make in made.items():
        text = filled(text, name, make())
    return text


def main() -> None:
    """All pages."""
    found, grids = read(), read_grids()
    for path, made in parts(found, grids).items():
        path.write_text(written(path, made), encoding="utf-8")
    PICTURE.write_text(rates_picture(grids, NAMES), encoding="utf-8")
    for name in (*TOOLS, AUTO_LORA):
        more = tools_over_auto(found, name, compared(found))
        print(f"{name} over auto: { ({rows: round(100 * value, 1) for rows, value in more.items()}) }")
    for what, shares in (
        ("GoRA over LoRA", pairs(grids, "gora auto", "lora")),
        ("GoRA as published over LoRA", pairs(grids, "gora paper", "lora")),
        ("all linear layers over attention", layers(grids)),
    ):
        values = list(shares.values())
        low = sum(value < 0 for value in values)
        middle, *ends = (100 * value for value in interval(values))
        print(f"{what}: {middle:+.2f} % ({ends[0]:+.2f} to {ends[1]:+.2f}), lower in {low} of {len(values)}")
    for own in (False, True):
        for methods in (tuple(OF_28M), RANK_8):
            found_orders = [agreement(rows, number, own, methods) for number, rows in enumerate(("math", "code"))]
            print("own rates" if own else "one rate", len(methods), "methods, order as in the paper:", found_orders)


if __name__ == "__main__":
    main()
