"""Prints the long tables of the evidence's cells, as far as they have been run.

python scripts/results/runs.py [evidence.json]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cells import ALL, AUTO, AUTO_LORA, GRID, METHODS, NEAREST, PAPER_METHODS, SEARCHED, SEEDS, TOOLS, Found
from cells import losses_of_search as searched
from names import NAMES, PUBLISHED, table, title
from reading import (
    adapters,
    auto_over_best,
    critical_difference,
    difference,
    fair_cells,
    fair_losses,
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
)
from sets import SETS


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


def base_of(found: Found, rows: str, task: str) -> dict[str, Any] | None:
    """What the base model reached."""
    return task_of(found, tool_cells(rows, AUTO), task, "base").get(1)


def accuracy_table(found: Found) -> str:
    """Accuracies in per cent; those within two standard errors of the base or of chance are in brackets."""
    columns = [(rows, task) for rows, task in accuracy_columns() if base_of(found, rows, task)]
    rows_of: dict[str, Callable[[str], list]] = {  # type: ignore[type-arg]
        **{name: (lambda rows, name=name: tool_cells(rows, name)) for name in (AUTO, AUTO_LORA, *TOOLS)},
        **{method: (lambda rows, method=method: fair_cells(found, rows, "all-linear", method)) for method in METHODS},
    }
    base = ["base model"]
    for rows, task in columns:
        one = base_of(found, rows, task)
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
    base = base_of(found, rows, task)
    against = [one["chance"] for one in mine.values() if "chance" in one][:1] + ([_main(base)] if base else [])
    text = f"{100 * accuracy:.1f}"
    return text if says_something(accuracy, count, against) else f"({text})"


def failures(found: Found) -> str:
    """What fell apart, and how."""
    failed = {name: run["failed"] for name, run in found.items() if "failed" in run}
    lines = [[name.replace(" | ", ", "), why[:120].replace("|", "/")] for name, why in failed.items()]
    return table(["run", "why"], lines) if lines else "None."


def main() -> None:
    """All tables that have something in them."""
    found = read(*map(Path, sys.argv[1:2]))
    print(f"{len(found)} cells, {sum('failed' in run for run in found.values())} failed\n\n{failures(found)}")
    if "math" in one_seed_columns(found):
        columns = one_seed_columns(found)
        near = critical_difference(len(places(columns)), len(columns))
        print(f"\n{fair_table(found)}\n\nMean places over {len(columns)} sets; nearer than {near:.1f} is tied.")
        print(f"\n{seeds_table(found)}\n\nTied with the first: {tied_with_first(adapters(fair_losses(found, 'math')))}")
        print(f"\n{rates_table(found)}\n\n{search_tables(found)}\n\n{transfer_table(found)}")
        for rows, (more, best) in auto_over_best(found).items():
            print(f"preset: auto over the best tuned method on {rows}: {100 * more:+.2f} % ({best})")
    if fair_losses(found, "math", "attention"):
        print(f"\n{attention_table(found)}")
    print(f"\n{paper_table(found)}\n\n{accuracy_table(found)}")


if __name__ == "__main__":
    main()
