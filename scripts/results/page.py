"""Writes the tables and the picture of docs/results.md and its appendix, and those of the README, from the raw runs.

    python scripts/results/page.py

Sentences are written by hand; `tests/scripts/test_results_page.py` recomputes what they claim.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from cells import ALL, AUTO, AUTO_LORA, GRID, METHODS, NEAREST, PAPER_METHODS, SEARCHED, SEEDS, TOOLS, Found
from cells import losses_of_search as searched
from picture import rates_picture
from reading import (
    adapters,
    auto_over_best,
    critical_difference,
    difference,
    fair_cells,
    fair_losses,
    interval,
    losses,
    mean,
    noise,
    one_seed_columns,
    paper_cells,
    places,
    read,
    right,
    says_something,
    task_of,
    tied_with_first,
    tool_cells,
    tools_over_auto,
)
from sets import SETS

ROOT = Path(__file__).parents[2]
PAGE, APPENDIX, README = ROOT / "docs" / "results.md", ROOT / "docs" / "results-appendix.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "results-rates.svg"
NAMES = {
    "peft": "PEFT", "llama-factory": "LLaMA-Factory", "axolotl": "Axolotl", "unsloth": "Unsloth", "trl": "TRL",
    "full": "full fine-tuning", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "lora+": "LoRA+", "pissa": "PiSSA",
    "olora": "OLoRA", "adalora": "AdaLoRA", "lora-pro": "LoRA-Pro", "lora-ga": "LoRA-GA", "lora-one": "LoRA-One",
    "eva": "EVA", "gora paper": "GoRA as published", "gora auto": "GoRA as in `preset: auto`",
    "gora paper r32": "GoRA r32", "gora paper r128": "GoRA r128", AUTO: "**`preset: auto`**",
    AUTO_LORA: "`preset: auto` with LoRA",
}  # fmt: skip
TITLES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "qnli": "QNLI", "mnli": "MNLI", "rte": "RTE"}
PUBLISHED = {
    "full": (73.69, 51.63), "lora": (67.78, 43.09), "rslora": (68.36, 45.78), "dora": (69.17, 43.70),
    "lora+": (71.29, 44.51), "olora": (68.54, 43.29), "pissa": (68.56, 44.10), "lora-ga": (71.39, 43.29),
    "adalora": (70.63, 41.46), "gora paper": (72.91, 48.98), "gora paper r32": (75.59, 51.22),
    "gora paper r128": (75.74, 52.03),
}  # fmt: skip
"""GSM8K and HumanEval in the paper's Table 2 (Llama-3.1-8B)."""


def title(rows: str) -> str:
    """What a set is called in tables."""
    return TITLES.get(rows, rows)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def tools_table(found: Found) -> str:
    """Loss of the preset and of each tool's settings, and how much more the latter is."""
    lines = []
    for name in (AUTO, AUTO_LORA, *TOOLS):
        cells = [losses(found, tool_cells(rows, name)) for rows in ALL]
        more = list(tools_over_auto(found, name).values())
        last = "" if name == AUTO or not more else f"{100 * statistics.fmean(more):+.1f} %"
        lines.append([NAMES[name], *(f"{mean(values):.3f}" if values else "" for values in cells), last])
    return table(["settings", *map(title, ALL), "to `auto`, mean"], lines)


def fair_table(found: Found) -> str:
    """Means of the searched sets, on all linear layers, and the mean place over all sets."""
    tables = {rows: fair_losses(found, rows) for rows in SEARCHED}
    order = places(one_seed_columns(found))
    names = sorted([AUTO, *METHODS], key=lambda method: order.get(method, 99.0))
    lines = []
    for method in names:
        cells = []
        for rows in SEARCHED:
            values = tables[rows].get(method)
            best = min(map(mean, adapters(tables[rows]).values()))
            text = f"{mean(values):.4f}" if values else ""
            cells.append(f"**{text}**" if values and method != "full" and mean(values) == best else text)
        lines.append([NAMES[method], *cells, f"{order[method]:.1f}" if method in order else ""])
    return table(["all linear layers, 0.92 M parameters", *map(title, SEARCHED), "mean place"], lines)


def attention_table(found: Found) -> str:
    """Means on math with the same parameters in attention, beside those on all linear layers."""
    attention, every = fair_losses(found, "math", "attention"), fair_losses(found, "math")
    lines = [
        [NAMES[method], f"{mean(attention[method]):.4f}", f"{mean(every[method]):.4f}" if method in every else ""]
        for method in sorted(attention, key=lambda method: mean(attention[method]))
    ]
    return table(["math", "attention, rank 8", "all linear layers"], lines)


def paper_table(found: Found) -> str:
    """Losses at the paper's rate, and the paper's own figures."""
    lines = []
    for method in PAPER_METHODS:
        cells = [losses(found, paper_cells(rows, method)) for rows in ("math", "code")]
        own = [f"{value:.2f}" for value in PUBLISHED[method]] if method in PUBLISHED else ["", ""]
        lines.append([NAMES[method], *(f"{mean(values):.4f}" if values else "" for values in cells), *own])
    head = ["attention, rank 8, 5e-5", "math", "code", "paper: GSM8K", "paper: HumanEval"]
    return table(head, sorted(lines, key=lambda line: line[1]))


def rates_table(found: Found) -> str:
    """Where each method's best rate lies."""
    lines = []
    for method in METHODS:
        cells = [fair_cells(found, rows, "all-linear", method) for rows in SEARCHED]
        attention = fair_cells(found, "math", "attention", method)
        lines.append([NAMES[method], *(f"{each[0].rate:.2g}" if each else "" for each in (*cells, attention))])
    lines.append(
        [NAMES[AUTO], *(_auto_rates(found, rows) for rows in SEARCHED), ""],
    )
    return table(["best rate", *map(title, SEARCHED), "math, attention"], lines)


def _auto_rates(found: Found, rows: str) -> str:
    runs = [found.get(str(cell), {}) for cell in tool_cells(rows, AUTO)]
    return ", ".join(f"{run['rate']:.2g}" for run in runs if "rate" in run)


def search_tables(found: Found) -> str:
    """Losses of the search by rate."""
    parts = []
    for rows, targets in (*((rows, "all-linear") for rows in SEARCHED), ("math", "attention")):
        lines = []
        for method in METHODS:
            tried = searched(found, rows, targets, method)
            if not tried:
                continue
            best = min(tried.values())
            cells = [("none" if loss == float("inf") else f"{loss:.4f}") for loss in tried.values()]
            marked = dict(zip(tried, cells, strict=True))
            lines.append(
                [
                    NAMES[method],
                    *(f"**{marked[rate]}**" if tried.get(rate) == best else marked.get(rate, "") for rate in GRID),
                ]
            )
        if lines:
            found_here = table(["method", *(f"{rate:g}" for rate in GRID)], lines)
            parts.append(f"**{title(rows)}, {targets}**\n\n{found_here}")
    return "\n\n".join(parts)


def seeds_table(found: Found) -> str:
    """Math with three seeds: difference from LoRA with its interval."""
    every = fair_losses(found, "math")
    spread = noise(every)
    lines = []
    for method in sorted(every, key=lambda method: mean(every[method])):
        gap, count = difference(every[method], every["lora"])
        half = f" ± {spread.half(len(every) - 1):.4f}" if spread and count == len(SEEDS) and method != "lora" else ""
        lines.append([NAMES[method], f"{mean(every[method]):.4f}", str(len(every[method])), f"{gap:+.4f}{half}"])
    return table(["math, all linear layers", "loss", "seeds", "less LoRA"], lines)


def transfer_table(found: Found) -> str:
    """Losses on the sets that take their rates over."""
    tables = {rows: fair_losses(found, rows) for rows in NEAREST}
    names = [method for method in (AUTO, *METHODS) if any(method in each for each in tables.values())]
    lines = [
        [NAMES[method], *(f"{mean(tables[rows][method]):.4f}" if method in tables[rows] else "" for rows in NEAREST)]
        for method in names
    ]
    return table(["rates taken over", *map(title, NEAREST)], lines)


def accuracy_columns() -> list[tuple[str, str]]:
    """Set and task of everything that accuracies were measured of."""
    return [(rows, task) for rows in ALL if SETS[rows].task is not None for task in SETS[rows].sources]


def accuracy_table(found: Found) -> str:
    """Accuracies in per cent; those within two standard errors of the base or of chance are in brackets."""
    columns = accuracy_columns()
    rows_of: dict[str, Callable[[str], list]] = {  # type: ignore[type-arg]
        **{name: (lambda rows, name=name: tool_cells(rows, name)) for name in (AUTO, AUTO_LORA, *TOOLS)},
        **{method: (lambda rows, method=method: fair_cells(found, rows, "all-linear", method)) for method in METHODS},
    }
    base = ["base model"]
    for rows, task in columns:
        one = task_of(found, tool_cells(rows, AUTO), task, "base").get(1)
        base.append(f"{100 * _main(one):.1f}" if one else "")
    lines = [base]
    for name, cells in rows_of.items():
        line = [NAMES[name]]
        for rows, task in columns:
            line.append(_accuracy(found, cells(rows), rows, task))
        if any(line[1:]):
            lines.append(line)
    return table(["per cent", *(title(task) for _, task in columns)], lines)


def _main(one: Mapping) -> float:  # type: ignore[type-arg]
    return float(next(iter(one["metrics"].values())))


def _accuracy(found: Found, cells: list, rows: str, task: str) -> str:  # type: ignore[type-arg]
    mine = task_of(found, cells, task)
    if not mine:
        return ""
    accuracy = statistics.fmean(_main(one) for one in mine.values())
    count = len(next(iter(right(mine).values())))
    base = task_of(found, tool_cells(rows, AUTO), task, "base").get(1)
    against = [one["chance"] for one in mine.values() if "chance" in one][:1] + ([_main(base)] if base else [])
    text = f"{100 * accuracy:.1f}"
    return text if says_something(accuracy, count, against) else f"({text})"


def failures(found: Found) -> str:
    """What fell apart, and how."""
    failed = {name: run["failed"] for name, run in found.items() if "failed" in run}
    lines = [[name.replace(" | ", ", "), why[:120].replace("|", "/")] for name, why in failed.items()]
    return table(["run", "why"], lines) if lines else "None."


def expected_table(found: Found) -> str:
    """Five lines for the README."""
    every = {rows: fair_losses(found, rows) for rows in SEARCHED}
    tuned = {
        rows: {method: mean(values) for method, values in adapters(each).items() if method != AUTO}
        for rows, each in every.items()
    }
    tools = {
        rows: [mean(values) for name in TOOLS if (values := losses(found, tool_cells(rows, name)))] for rows in SEARCHED
    }
    lines = {
        NAMES[AUTO]: [mean(every[rows][AUTO]) for rows in SEARCHED],
        "the best of 13 methods, each tuned": [min(tuned[rows].values()) for rows in SEARCHED],
        "LoRA, tuned": [tuned[rows]["lora"] for rows in SEARCHED],
        "GoRA as published, tuned": [tuned[rows]["gora paper"] for rows in SEARCHED],
        "defaults of five tools, mean": [statistics.fmean(tools[rows]) for rows in SEARCHED],
    }
    cells = [[name, *(f"{value:.3f}" for value in values)] for name, values in lines.items()]
    return table(["eval loss", *map(title, SEARCHED)], cells)


PARTS: dict[Path, dict[str, Callable[[Found], str]]] = {
    PAGE: {"tools": tools_table, "fair": fair_table, "paper": paper_table},
    APPENDIX: {
        "rates": rates_table,
        "seeds": seeds_table,
        "attention": attention_table,
        "transfer": transfer_table,
        "accuracies": accuracy_table,
        "search": search_tables,
        "failures": failures,
    },
    README: {"expect": expected_table},
}


def filled(text: str, name: str, part: str) -> str:
    """A page with one of its parts written anew."""
    pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(\n<!-- end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda match: match[1] + part + match[2], text)
    if count != 1:
        raise SystemExit(f"There must be one part {name!r}, not {count}.")
    return changed


def main() -> None:
    """All parts."""
    found = read()
    for path, parts in PARTS.items():
        text = path.read_text(encoding="utf-8")
        for name, make in parts.items():
            text = filled(text, name, make(found))
        path.write_text(text, encoding="utf-8")
    PICTURE.write_text(rates_picture(found, NAMES), encoding="utf-8")
    print_claims(found)


def print_claims(found: Found) -> None:
    """What sentences are written from."""
    columns = one_seed_columns(found)
    order = places(columns)
    print(f"{len(found)} cells, {sum('failed' in run for run in found.values())} failed")
    print("mean places", {method: round(place, 1) for method, place in sorted(order.items(), key=lambda item: item[1])})
    print("columns", len(columns), "critical difference", round(critical_difference(len(order), len(columns)), 1))
    print("tied with the first on math:", tied_with_first(adapters(fair_losses(found, "math"))))
    for rows, (more, best) in auto_over_best(found).items():
        print(f"auto over best on {rows}: {100 * more:+.2f} % ({best})")
    for name in (*TOOLS, AUTO_LORA):
        more = tools_over_auto(found, name)
        if len(more) > 1:
            each = ", ".join(f"{rows} {100 * value:+.1f}" for rows, value in more.items())
            print(f"{name} over auto, per cent: {each}; {interval(list(more.values()))}")


if __name__ == "__main__":
    main()
