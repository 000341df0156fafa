"""Writes the answers, tables and the picture of docs/results.md, its appendix and the README from the raw runs.

    python scripts/results/page.py

What is between `<!-- NAME: ... -->` and `<!-- end -->` is written here, from whatever has been run; what was not run is
left empty. `tests/scripts/test_results_page.py` recomputes what is said.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import earlier
from answers import (
    answer_again,
    answer_fair,
    answer_rules,
    answer_tools,
    compared,
    more_of_fair,
    more_of_tools,
)
from cells import AUTO, AUTO_LORA, KEPT, METHODS, NEAREST, SEARCHED, TOOLS, Found, losses_of_search
from grids import Grid, Search, read_grids
from names import NAMES, PUBLISHED, TABLE_2, signed, table, title
from picture import rates_picture
from preset import columns, margins, rows_in_a_step, settings_columns, settings_losses, tools_over_auto
from protocol import answer_paper, more_of_paper, one_rate
from reading import FIRST, OTHER_RULE, complete, fair_losses, levels, places, read, tied_with_first, tool_cells
from runs import (
    ablations_table,
    accuracy_table,
    again_table,
    answers_table,
    failures,
    margins_table,
    methods_table,
    progress_table,
    rates_table,
    rules_table,
    search_tables,
    settings_table,
)
from sets import SIZES

ROOT = Path(__file__).parents[2]
PAGE, APPENDIX, README = ROOT / "docs" / "results.md", ROOT / "docs" / "results-appendix.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "results-rates.svg"


def tools_table(found: Found) -> str:
    """Loss with each tool's settings, trained parameters, steps, and how much more than the preset's."""
    sets = [rows for rows in SEARCHED if rows in compared(found)]
    every = {rows: levels(settings_losses(found, rows)) for rows in sets}
    order = places(whole) if (whole := settings_columns(found)) else {}
    lines = []
    for name in (AUTO, AUTO_LORA, *TOOLS):
        run = next((run for cell in tool_cells("math", name) if "loss" in (run := found.get(str(cell), {}))), None)
        if run is None or not sets:
            continue
        more = tools_over_auto(found, name, list(compared(found)))
        lines.append(
            [
                NAMES[name],
                f"{run['trainable'] / 1e6:.2f} M",
                str(math.ceil(SIZES.train / rows_in_a_step(name))),
                f"{run['rate']:g}" if name in TOOLS else "found",
                *(f"{every[rows][name]:.3f}" if name in every[rows] else "" for rows in sets),
                "" if name == AUTO else signed(statistics.median(more.values())),
                f"{order[name]:.1f}" if name in order else "",
            ]
        )
    head = ["settings", "trained", "steps", "rate", *map(title, sets), f"over `auto`, median of {len(compared(found))}"]
    return table([*head, f"mean place, {len(whole)} sets"], lines)


def fair_table(found: Found) -> str:
    """Means on the searched sets, on all linear layers, and the mean place over all sets."""
    sets = [rows for rows in SEARCHED if complete(fair_losses(found, rows))]
    tables = {rows: fair_losses(found, rows) for rows in sets}
    values = {rows: levels(one) for rows, one in tables.items()}
    order = places(columns(found)) if columns(found) else {}
    tied = {rows: tied_with_first({m: v for m, v in one.items() if m != "full"}) for rows, one in tables.items()}
    names = {method for one in values.values() for method in one}
    lines = []
    first = next(iter(values.values()), {})
    for method in sorted(names, key=lambda method: (order.get(method, 99.0), first.get(method, 99.0))):
        cells = [f"{one[method]:.4f}" if method in one else "" for one in values.values()]
        marked = [f"**{text}**" if method in tied[rows] else text for rows, text in zip(sets, cells, strict=True)]
        lines.append([NAMES[method], *marked, f"{order[method]:.1f}" if method in order else ""])
    seeds = [str(len(next(iter(complete(one).values()), {}))) for one in tables.values()]
    head = ["all linear layers, 0.92 M parameters", *map(title, sets), f"mean place, {len(columns(found))} sets"]
    return table(head, [*lines, ["seeds", *seeds, ""]])


def order_table(found: Found) -> str:
    """At one rate for all, and at each one's own; the paper's own figures beside them."""
    one = {rows: one_rate(found, rows) for rows in ("math", "code")}
    own = {rows: levels(fair_losses(found, rows)) for rows in ("math", "code")}
    lines = []
    for method in sorted(TABLE_2, key=lambda method: -PUBLISHED[method][0]):
        cells = [f"{each[method]:.4f}" if method in each else "" for each in (*one.values(), *own.values())]
        lines.append([NAMES[method], *(f"{value:.2f}" for value in PUBLISHED[method]), *cells])
    head = ["", "paper: GSM8K", "HumanEval", "one rate, attention: math", "code", "own rates, all linear: math", "code"]
    return table(head, lines)


def expected_table(found: Found) -> str:
    """Five lines for the README."""
    sets = [rows for rows in SEARCHED if rows in compared(found)]
    every = {rows: levels(settings_losses(found, rows)) for rows in sets}
    lines = [
        [NAMES[name], *(f"{every[rows][name]:.3f}" if name in every[rows] else "" for rows in sets)]
        for name in (AUTO, AUTO_LORA, "axolotl", "unsloth")
    ]
    means = [statistics.fmean(every[rows][name] for name in TOOLS if name in every[rows]) for rows in sets]
    lines.append(["mean of five tools' settings", *(f"{value:.3f}" for value in means)])
    return table([f"eval loss after {SIZES.train:,} rows", *map(title, sets)], lines if sets else [])


def parts(found: Found, grids: Mapping[Search, Grid], first: Found) -> dict[Path, dict[str, Callable[[], str]]]:
    """What is written where."""
    return {
        PAGE: {
            "answer-tools": partial(answer_tools, found),
            "tools": partial(tools_table, found),
            "more-tools": partial(more_of_tools, found),
            "answer-fair": partial(answer_fair, found),
            "fair": partial(fair_table, found),
            "more-fair": partial(more_of_fair, found),
            "rules": partial(answer_rules, found, read(OTHER_RULE)),
            "answer-paper": partial(answer_paper, found),
            "order": partial(order_table, found),
            "more-paper": partial(more_of_paper, found),
            "answer-again": partial(answer_again, found, first),
            "progress": partial(progress_table, found),
        },
        APPENDIX: {
            "settings": partial(settings_table, found),
            "margins": partial(margins_table, found),
            "other-rule": partial(rules_table, found, read(OTHER_RULE)),
            "searched": partial(methods_table, found, SEARCHED),
            "taken": partial(methods_table, found, tuple(NEAREST)),
            "attention": partial(methods_table, found, ("math", "code"), "attention"),
            "ablations": partial(ablations_table, found),
            "again": partial(again_table, found, first),
            "accuracies": partial(accuracy_table, found),
            "answers": partial(answers_table, found, first),
            "rates": partial(rates_table, found),
            "search": partial(search_tables, found),
            "failures": partial(failures, found),
            "searches": partial(earlier.searches_table, grids),
        },
        README: {"expect": partial(expected_table, found)},
    }


def picture(found: Found) -> str:
    """Loss by rate of all methods, on the rows that rates were chosen by."""
    steps = SIZES.train // 16
    searches = {
        Search(rows, "all-linear", method, steps): losses_of_search(found, rows, "all-linear", method)
        for rows in SEARCHED
        for method in METHODS
    }
    grids = {search: grid for search, grid in searches.items() if len(grid) > 2}
    panels = [(rows, "all-linear", steps) for rows in SEARCHED if any(search.rows == rows for search in grids)]
    return rates_picture(grids, panels, NAMES)


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
    found, grids, first = read(), read_grids(), read(FIRST)
    for path, made in parts(found, grids, first).items():
        path.write_text(written(path, made), encoding="utf-8")
    PICTURE.write_text(picture(found), encoding="utf-8")
    print(f"less than the tools' mean: { ({rows: round(100 * value, 1) for rows, value in compared(found).items()}) }")
    print(f"kept to judge: {KEPT}")
    for rows, one in margins(found).items():
        print(f"{rows}: auto {100 * one.share:+.2f} % over {one.best}, {one}")


if __name__ == "__main__":
    main()
