"""Two plans side by side: what was decided otherwise, and rank by rank, for people and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gora.plan import Plan
from gora.report.decisions import decisions_of, value_text
from gora.report.grid import arrange

_SETTINGS = (
    *("alpha", "reference_rank", "rank_min", "rank_max", "budget"),
    *("micro_batch_size", "seed", "scale", "balance", "temperature"),
)
_MOST_SHOWN = 60


def compare_plans(one: Plan, other: Plan) -> dict[str, Any]:
    """Everything in which two plans differ, and how much; ready for JSON.

    `ranks` has [first, second] of every layer, None where a plan has no such layer; `correlation` is Spearman's, over
    the layers of both, None where one of them gives all the same rank.
    """
    ranks = {module.name: module.rank for module in one.modules}, {module.name: module.rank for module in other.modules}
    names = dict.fromkeys([*ranks[0], *ranks[1]])
    both = [name for name in names if name in ranks[0] and name in ranks[1]]
    decided = decisions_of(one), decisions_of(other)
    settings: dict[str, list[Any]] = {
        key: [each[key].value if key in each else None for each in decided]
        for key in dict.fromkeys([*decided[0], *decided[1]])
    }
    settings |= {key: [getattr(one, key), getattr(other, key)] for key in _SETTINGS}
    return {
        "same_model": one.model.config == other.model.config and one.model.weights == other.model.weights,
        "same_rows": one.data == other.data,
        "settings": {key: pair for key, pair in settings.items() if pair[0] != pair[1]},
        "ranks": {name: [ranks[0].get(name), ranks[1].get(name)] for name in names},
        "equal": sum(ranks[0][name] == ranks[1][name] for name in both),
        "correlation": rank_correlation([ranks[0][name] for name in both], [ranks[1][name] for name in both]),
        "parameters": [one.parameters, other.parameters],
    }


def comparison_report(one: Plan, other: Plan, names: tuple[str, str]) -> Group:
    """The same for people.

    Args:
        one, other: the plans.
        names: what to call them.
    """
    found = compare_plans(one, other)
    parts: list[Any] = []
    if found["settings"]:
        table = _table("decided", "first", "second")
        for key, (mine, theirs) in found["settings"].items():
            table.add_row(key, Text(_said(mine)), Text(_said(theirs)))
        parts += [table, Text()]
    parts += [_kinds(one, other, found["ranks"]), Text()]
    if changed := {name: pair for name, pair in found["ranks"].items() if pair[0] != pair[1]}:
        parts += [_layers(changed), Text()]
    return Group(*parts, _totals(found, names))


def rank_correlation(one: Sequence[int], other: Sequence[int]) -> float | None:
    """Spearman's: Pearson's correlation of the places, equal values sharing the mean of theirs."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return statistics.correlation(_places(one), _places(other))


def _places(values: Sequence[int]) -> list[float]:
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    count = {value: ordered.count(value) for value in first}
    return [first[value] + (count[value] - 1) / 2 for value in values]


def _kinds(one: Plan, other: Plan, ranks: dict[str, list[int | None]]) -> Table:
    grid = arrange(ranks)
    table = _table("kind", "layers", "mean rank", "second", "lower", "equal", "higher", right=6)
    for kind in grid.columns:
        pairs = [pair for name, pair in ranks.items() if grid.kind(name) == kind]
        given = ([rank for rank in side if rank is not None] for side in zip(*pairs, strict=True))
        means = [f"{statistics.fmean(side):.1f}" if side else "" for side in given]
        steps = [second - first for first, second in pairs if first is not None and second is not None]
        counts = [sum(step < 0 for step in steps), steps.count(0), sum(step > 0 for step in steps)]
        table.add_row(Text(kind), str(len(pairs)), *means, *map(str, counts))
    return table


def _layers(changed: dict[str, list[int | None]]) -> Table:
    table = _table("rank by rank", "first", "second", "", right=3)
    for name, (first, second) in list(changed.items())[:_MOST_SHOWN]:
        step = "" if first is None or second is None else f"{second - first:+d}"
        table.add_row(Text(name), *("no such layer" if rank is None else str(rank) for rank in (first, second)), step)
    if len(changed) > _MOST_SHOWN:
        table.add_row(f"and {len(changed) - _MOST_SHOWN} more: --json has them all", "", "", "")
    return table


def _totals(found: dict[str, Any], names: tuple[str, str]) -> Table:
    facts = Table.grid(padding=(0, 1))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("first", Text(names[0]))
    facts.add_row("second", Text(names[1]))
    if not found["same_model"]:
        facts.add_row("model", "not the same base model")
    if not found["same_rows"]:
        facts.add_row("rows", "not the same training rows")
    total, correlation = len(found["ranks"]), found["correlation"]
    told = "none: all ranks of one are equal" if correlation is None else f"{correlation:.3f} (Spearman)"
    facts.add_row("equal", f"{found['equal']} of {total} ranks")
    facts.add_row("correlation", told)
    first, second = found["parameters"]
    ratio = f", {second / first:.2f}x" if first else ""
    facts.add_row("trainable", f"{first:,} and {second:,} parameters{ratio}")
    return facts


def _said(value: Any) -> str:
    return "" if value is None else value_text(value)


def _table(*headers: str, right: int = 0) -> Table:
    """A table whose last columns, as many as `right`, are of figures."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="bold")
    for number, header in enumerate(headers):
        figures = number >= len(headers) - right
        table.add_column(header, justify="right" if figures else "left", overflow="fold", no_wrap=figures)
    return table
