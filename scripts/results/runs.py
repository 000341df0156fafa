"""The long tables of the evidence, as far as its cells have been run.

python scripts/results/runs.py [evidence.json]        # prints them
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy import accuracy, accuracy_columns, base_of, main_figure, says_something, task_of
from cells import (
    ABLATIONS,
    ALL,
    AUTO,
    AUTO_LORA,
    GRID,
    METHODS,
    NEAREST,
    SEARCHED,
    TABLES,
    TOOLS,
    Cell,
    Found,
    again,
    plan,
)
from cells import losses_of_search as searched
from names import ABLATED, NAMES, NOT_YET, TABLE_NAMES, signed, table, title
from preset import margins, settings_losses
from reading import FIRST, complete, fair_cells, fair_losses, levels, losses, noise, paper_cells, read, tool_cells


def settings_table(found: Found, sets: Sequence[str] = ALL) -> str:
    """Mean losses of the tools' settings and the preset's, on the seeds that all of a set's have."""
    sets = [rows for rows in sets if settings_losses(found, rows)]
    lines = []
    for name in (AUTO, AUTO_LORA, *TOOLS):
        line = [NAMES[name]]
        for rows in sets:
            value = levels(settings_losses(found, rows))
            line.append(f"{value[name]:.4f}" if name in value else "")
        if any(line[1:]):
            lines.append(line)
    seeds = [str(max((len(losses(found, tool_cells(rows, name))) for name in TOOLS), default=0)) for rows in sets]
    return table(["settings", *map(title, sets)], [*lines, ["seeds", *seeds]] if lines else [])


def methods_table(found: Found, sets: Sequence[str], targets: str = "all-linear") -> str:
    """Mean losses of every method at its own rate, and how many seeds most of a set's have."""
    tables = {rows: fair_losses(found, rows, targets) for rows in sets}
    values = {rows: levels(one) for rows, one in tables.items()}
    names = [method for method in (AUTO, *METHODS) if any(method in one for one in values.values())]
    lines = [[NAMES[name], *(f"{one[name]:.4f}" if name in one else "" for one in values.values())] for name in names]
    seeds = [str(len(next(iter(complete(one).values()), {}))) for one in tables.values()]
    halves = [f"{spread.half():.4f}" if (spread := noise(one)) else "" for one in tables.values()]
    tail = [["seeds", *seeds], ["two differ by chance by (95 %)", *halves]]
    return table([f"{targets}, 0.92 M parameters", *map(title, sets)], lines + tail if lines else [])


def margins_table(found: Found) -> str:
    """By how much `preset: auto` misses the best method whose rate was looked for."""
    lines = []
    for rows, one in margins(found).items():
        half = "" if one.half is None else f" (± {100 * one.half:.1f})"
        rates = ", ".join(
            f"{run['rate']:.2g}" for cell in tool_cells(rows, AUTO) if "rate" in (run := _run(found, cell))
        )
        own = fair_cells(found, rows, "all-linear", "gora auto")
        lines.append(
            [
                title(rows),
                f"{NAMES[one.best]} ({one.methods})",
                f"{signed(one.share)}{half}",
                "" if one.points is None else f"{100 * one.points:+.1f} (± {100 * one.error:.1f})",
                "yes" if one.reached else "no",
                str(one.seeds),
                rates,
                f"{own[0].rate:.2g}" if own else "",
            ]
        )
    head = [
        "set",
        "least loss of tuned methods (how many)",
        "`auto` over it",
        "accuracy to the best one, points",
        "within the aim",
        "seeds",
        "rates that `auto` found",
        "tuned rate of its kind",
    ]
    return table(head, lines)


def _run(found: Found, cell: Cell) -> Mapping[str, Any]:
    return found.get(str(cell), {})


def rates_table(found: Found) -> str:
    """Where each method's best rate lies."""
    lines = []
    for method in METHODS:
        cells = [fair_cells(found, rows, "all-linear", method) for rows in SEARCHED]
        attention = fair_cells(found, "math", "attention", method)
        if any(cells) or attention:
            lines.append([NAMES[method], *(f"{each[0].rate:.2g}" if each else "" for each in (*cells, attention))])
    return table(["best rate", *map(title, SEARCHED), "math, attention"], lines)


def search_tables(found: Found) -> str:
    """Losses of the searches by rate, on the rows to choose by."""
    parts = []
    for rows, targets in (*((rows, "all-linear") for rows in SEARCHED), ("math", "attention"), ("code", "attention")):
        lines = []
        rates = [rate for rate in GRID if any(rate in searched(found, rows, targets, method) for method in METHODS)]
        for method in METHODS:
            tried = searched(found, rows, targets, method)
            if tried:
                shown = {rate: "none" if loss == float("inf") else f"{loss:.4f}" for rate, loss in tried.items()}
                best = min(tried, key=tried.__getitem__)
                cells = [f"**{shown[rate]}**" if rate == best else shown.get(rate, "") for rate in rates]
                lines.append([NAMES[method], *cells])
        if lines:
            parts.append(f"{title(rows)}, {targets}:\n\n{table(['method', *(f'{rate:g}' for rate in rates)], lines)}")
    return "\n\n".join(parts) or NOT_YET


def ablations_table(found: Found) -> str:
    """Bounds, first steps and importances of ranks, as in Tables 5 and 6 of the paper."""
    lines = []
    for method in ("gora paper", *ABLATIONS):
        values = []
        for rows in ("math", "code"):
            every = {name: losses(found, paper_cells(rows, name)) for name in ("gora paper", *ABLATIONS)}
            values.append(levels({name: one for name, one in every.items() if one}).get(method))
        what, *published = ABLATED[method]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        if any(cells):
            lines.append([what, *cells, *(f"{value:.2f}" for value in published)])
    return table(["GoRA, attention, one rate", "math", "code", "paper: GSM8K", "HumanEval"], lines)


def again_table(found: Found, first: Found) -> str:
    """What was run on another machine before, and what came of it this time."""
    lines = []
    for cell in again():
        now, then = _run(found, cell), _run(first, cell._replace(table="tools"))
        if "loss" in now and "loss" in then:
            one, other = then["loss"]["final"], now["loss"]["final"]
            rates = f"{then['rate']:.2g}, {now['rate']:.2g}"
            lines.append([NAMES[cell.method], rates, f"{one:.4f}", f"{other:.4f}", f"{100 * (other / one - 1):+.2f} %"])
    return table([f"{again_title()}, settings", "rates", "first machine", "second machine", "difference"], lines)


def rules_table(found: Found, other: Found) -> str:
    """The preset with the rule for rates that ships, and with another one."""
    lines = []
    for name in other:
        _, rows, _, method, _, _ = name.split(" | ")
        pair = [one[name] for one in (found, other) if "loss" in one.get(name, {})]
        if len(pair) == 2:
            cells = [f"{run['loss']['final']:.4f} ({run['rate']:.2g})" for run in pair]
            lines.append([title(rows), NAMES[method], *cells])
    return table(["set", "", "the rule that ships: loss (rate)", "the other rule"], sorted(lines))


def again_title() -> str:
    """The sets that were run twice."""
    return ", ".join(title(rows) for rows in dict.fromkeys(cell.rows for cell in again()))


def accuracy_table(found: Found) -> str:
    """Accuracies in per cent; those within two standard errors of the base or of chance are in brackets."""
    columns = [(rows, task) for rows, task in accuracy_columns() if base_of(found, rows, task)]
    rows_of: dict[str, Callable[[str], list[Cell]]] = {
        **{name: (lambda rows, name=name: tool_cells(rows, name)) for name in (AUTO, AUTO_LORA, *TOOLS)},
        **{method: (lambda rows, method=method: fair_cells(found, rows, "all-linear", method)) for method in METHODS},
    }
    if not columns:
        return NOT_YET
    base, chance = ["base model"], ["chance"]
    for rows, task in columns:
        one = base_of(found, rows, task)
        base.append(f"{100 * main_figure(one):.1f}" if one else "")
        chance.append(f"{100 * one['chance']:.1f}" if one and "chance" in one else "")
    lines = [line for line in (chance, base) if any(line[1:])]
    for name, cells in rows_of.items():
        line = [NAMES[name], *(_accuracy(found, cells(rows), rows, task) for rows, task in columns)]
        if any(line[1:]):
            lines.append(line)
    return table(["per cent", *(title(task) for _, task in columns)], lines)


def _accuracy(found: Found, cells: list[Cell], rows: str, task: str) -> str:
    told = accuracy(found, cells, rows, task)
    return "" if told is None else f"{100 * told[0]:.1f}" if told[1] else f"({100 * told[0]:.1f})"


def answers_table(found: Found, first: Found) -> str:
    """Questions of GSM8K that were answered right, in per cent: of these runs, or of the first machine's."""
    cells = [Cell("answers", "math", "own", name, "auto" if name in (AUTO, AUTO_LORA) else "own", 1)
             for name in (AUTO, AUTO_LORA, *TOOLS)]  # fmt: skip
    if not any("loss" in _run(found, cell) for cell in cells):
        found, cells = first, [cell._replace(table="tools") for cell in cells]
    base = task_of(found, cells[:1], "gsm8k", "base").get(1)
    lines = [["base model", f"{100 * main_figure(base):.1f}"]] if base else []
    for cell in cells:
        one = task_of(found, [cell], "gsm8k").get(1)
        if one:
            near = base and not says_something(main_figure(one), len(one["right"]), [main_figure(base)])
            text = f"{100 * main_figure(one):.1f}"
            lines.append([NAMES[cell.method], f"({text})" if near else text])
    return table(["settings", "GSM8K"], lines)


def progress_table(found: Found) -> str:
    """How many of the cells that are known have been run."""
    lines = []
    for name in TABLES:
        known = [str(cell) for cell in dict.fromkeys(plan(found, [name]))]
        run, failed = (sum(test(found.get(one, {})) for one in known) for test in (bool, lambda one: "failed" in one))
        lines.append([TABLE_NAMES[name], str(run), str(len(known) - run), str(failed)])
    return table(["runs", "made", "not made", "fell apart"], lines)


def failures(found: Found) -> str:
    """What fell apart, and how."""
    failed = {name: run["failed"] for name, run in found.items() if "failed" in run}
    lines = [[name.replace(" | ", ", "), why[:120].replace("|", "/")] for name, why in failed.items()]
    return table(["run", "why"], lines) if lines else "None."


def main() -> None:
    """All tables."""
    found, first = read(*map(Path, sys.argv[1:2])), read(FIRST)
    for text in (
        progress_table(found), failures(found), settings_table(found), methods_table(found, SEARCHED),
        methods_table(found, tuple(NEAREST)), methods_table(found, ("math", "code"), "attention"), margins_table(found),
        rates_table(found), search_tables(found), ablations_table(found), again_table(found, first),
        accuracy_table(found), answers_table(found, first),
    ):  # fmt: skip
        print(f"\n{text}")


if __name__ == "__main__":
    main()
