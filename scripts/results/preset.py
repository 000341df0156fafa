"""How `preset: auto` stands: beside the methods whose rate was looked for, and beside the settings of tools."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from accuracy import (
    accuracy,
    accuracy_columns,
    accuracy_interval,
    answered,
    right,
    says_something,
    standard_error,
    task_of,
    to_beat,
)
from cells import ALL, AUTO, AUTO_LORA, METHODS, TOOLS, Found
from making import RECIPES
from reading import (
    Seeded,
    adapters,
    complete,
    fair_cells,
    fair_losses,
    losses,
    mean,
    noise,
    tool_cells,
)

NEAR, FEWEST = 0.005, 3
"""How much more loss than the best tuned method is allowed, as a share, and how many others make an order."""


def beside(found: Found, rows: str) -> dict[str, Seeded]:
    """Losses of the preset and all tuned adapters, on seeds that the preset has; nothing while it has none."""
    table = adapters(fair_losses(found, rows))
    seeds = table.get(AUTO, {}).keys()
    shared = {name: {seed: values[seed] for seed in values if seed in seeds} for name, values in table.items()}
    return complete({name: values for name, values in shared.items() if values})


def columns(found: Found) -> dict[str, dict[str, float]]:
    """Mean losses of the preset and all tuned adapters by set, where enough of them have been run."""
    tables = {rows: beside(found, rows) for rows in ALL}
    return {
        rows: {method: mean(values) for method, values in table.items()}
        for rows, table in tables.items()
        if AUTO in table and len(table) > FEWEST
    }


@dataclass(frozen=True, kw_only=True)
class Margin:
    """`preset: auto` against the best method whose rate was looked for, with the same parameters.

    Attributes:
        best: that method, by its loss.
        share: how much more loss the preset ends with.
        half: half the 95 % interval of it, for one comparison; None with one seed.
        seeds: how many both have.
        methods: how many the best one was taken from.
        points: the preset's accuracy over all tasks of the set, less that of the method with the best one; None where
            that is not told from chance or from the base model.
        error: one standard error of that best accuracy.
    """

    best: str
    share: float
    half: float | None
    seeds: int
    methods: int
    points: float | None
    error: float

    @property
    def reached(self) -> bool:
        """Whether loss is no more than half a per cent above, or accuracy no more than one standard error below."""
        return self.by_loss or (self.points is not None and self.points >= -self.error)

    @property
    def by_loss(self) -> bool:
        """Whether the loss is no more than half a per cent above."""
        return self.share <= NEAR

    @property
    def tied(self) -> bool:
        """Whether the interval holds 0."""
        return self.half is not None and abs(self.share) <= self.half


def margins(found: Found) -> dict[str, Margin]:
    """By set, where the preset and a tuned method have been run."""
    made = {}
    for rows in ALL:
        table = beside(found, rows)
        if AUTO not in table or len(table) < 2:
            continue
        means = {method: mean(values) for method, values in table.items()}
        best = min((method for method in means if method != AUTO), key=means.__getitem__)
        spread = noise(table)
        points, error = _points(found, rows)
        made[rows] = Margin(
            best=best,
            share=means[AUTO] / means[best] - 1,
            half=None if spread is None else spread.half() / means[best],
            seeds=len(table[AUTO]),
            methods=len(table) - 1,
            points=points,
            error=error,
        )
    return made


def _points(found: Found, rows: str) -> tuple[float | None, float]:
    mine = answered(found, tool_cells(rows, AUTO), rows)
    others = {}
    for method in METHODS:
        theirs = answered(found, fair_cells(found, rows, "all-linear", method), rows)
        if method != "full" and mine and mine.keys() <= theirs.keys():
            others[method] = statistics.fmean(theirs[seed].mean() for seed in mine)
    if not others:
        return None, 0.0
    best, count = max(others.values()), len(next(iter(mine.values())))
    if not says_something(best, count, to_beat(found, rows)):
        return None, standard_error(best, count)
    return statistics.fmean(each.mean() for each in mine.values()) - best, standard_error(best, count)


def rows_in_a_step(name: str) -> int:
    """Of a tool's settings, or of the preset."""
    if name not in TOOLS:
        return 16
    written = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return int(written["train"]["batch_size"])


def settings_losses(found: Found, rows: str) -> dict[str, Seeded]:
    """Losses of the tools' settings and the preset's."""
    every = {name: losses(found, tool_cells(rows, name)) for name in (AUTO, AUTO_LORA, *TOOLS)}
    return {name: values for name, values in every.items() if values}


def settings_columns(found: Found) -> dict[str, dict[str, float]]:
    """Mean losses of the tools' settings and the preset's by set, where all have been run."""
    made = {}
    for rows in ALL:
        every = settings_losses(found, rows)
        seeds = set.intersection(*(set(values) for values in every.values())) if every else set()
        if seeds and len(every) == len(TOOLS) + 2:
            made[rows] = {name: statistics.fmean(values[seed] for seed in seeds) for name, values in every.items()}
    return made


def tools_over_auto(found: Found, name: str, sets: Sequence[str] = ALL) -> dict[str, float]:
    """How much more loss a tool's settings end with than `preset: auto`, as a share, on the seeds that both have."""
    more = {}
    for rows in sets:
        mine, theirs = losses(found, tool_cells(rows, AUTO)), losses(found, tool_cells(rows, name))
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            more[rows] = statistics.fmean(theirs[seed] / mine[seed] - 1 for seed in shared)
    return more


def less_than_mean(found: Found, rows: str, fewest: int = 4) -> float | None:
    """How much less loss the preset ends with than the tools on average, as a share, on the seeds that all have.

    None while the preset or more than one tool has not been run.
    """
    mine = losses(found, tool_cells(rows, AUTO))
    theirs = [values for name in TOOLS if (values := losses(found, tool_cells(rows, name)))]
    shared = sorted(mine.keys() & set.intersection(*map(set, theirs))) if len(theirs) >= fewest else []
    if not shared:
        return None
    return statistics.fmean(1 - mine[s] / statistics.fmean(values[s] for values in theirs) for s in shared)


def accuracies_against(found: Found, name: str) -> dict[str, tuple[float, float, float]]:
    """The preset's accuracy less that of a tool's settings, with its interval for all of these comparisons at a time.

    By task; left out where neither accuracy is told from chance and from the base model.
    """
    pairs = {}
    for rows, task in accuracy_columns():
        mine, theirs = (task_of(found, tool_cells(rows, one), task) for one in (AUTO, name))
        told = [accuracy(found, tool_cells(rows, one), rows, task) for one in (AUTO, name)]
        if mine.keys() & theirs.keys() and any(one and one[1] for one in told):
            pairs[task] = right(mine), right(theirs)
    return {task: accuracy_interval(one, other, len(pairs)) for task, (one, other) in pairs.items()}
