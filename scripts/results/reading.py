"""What the raw runs of the evidence say of losses: means, noise, what is tied, and places."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cells import AUTO, COMMON_RATE, METHODS, SEARCHED, SEEDS, Cell, Found, best_rate, rate_taken_over
from scipy import stats

DATA = Path(__file__).parents[2] / "docs" / "data"
RAW, FIRST = DATA / "evidence.json", DATA / "evidence-first.json"
"""The runs of the page, and those that another machine made before."""
OTHER_RULE = DATA / "evidence-proportional.json"
"""Runs of the preset with a rule for rates that does not ship, on sets of labels and short answers."""
Seeded = dict[int, float]


def read(path: Path = RAW) -> Found:
    """All cells by name."""
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found


def tool_cells(rows: str, name: str) -> list[Cell]:
    """All seeds of a tool, or of the preset, on a set."""
    rate = "auto" if name.startswith(AUTO) else "own"
    return [Cell("tools", rows, "own", name, rate, seed) for seed in SEEDS]


def fair_cells(found: Found, rows: str, targets: str, method: str) -> list[Cell]:
    """All seeds of a method at its best rate; none while that is not known.

    Where rates are taken over, few methods have a search of their own: one that has been run at its end counts.
    """
    for rate in (best_rate(found, rows, targets, method), rate_taken_over(found, rows, targets, method)):
        if rate is not None:
            cells = [Cell("fair", rows, targets, method, rate, seed) for seed in SEEDS]
            if rows in SEARCHED or any(str(cell) in found for cell in cells):
                return cells
    return []


def paper_cells(rows: str, method: str) -> list[Cell]:
    """All seeds of a method at the one rate for all."""
    return [Cell("paper", rows, "attention", method, COMMON_RATE, seed) for seed in SEEDS]


def losses(found: Found, cells: Iterable[Cell]) -> Seeded:
    """Final eval loss by seed, of the cells that were run and did not fail."""
    runs = {cell.seed: found.get(str(cell), {}) for cell in cells}
    return {seed: run["loss"]["final"] for seed, run in runs.items() if "loss" in run}


def fair_losses(found: Found, rows: str, targets: str = "all-linear") -> dict[str, Seeded]:
    """By method; `preset: auto` beside those whose rate was looked for, where it trains the same layers."""
    table = {method: losses(found, fair_cells(found, rows, targets, method)) for method in METHODS}
    if targets == "all-linear":
        table = {AUTO: losses(found, tool_cells(rows, AUTO)), **table}
    return {method: values for method, values in table.items() if values}


def adapters(table: Mapping[str, Seeded]) -> dict[str, Seeded]:
    """Without whole weights, which train a hundred times as many parameters."""
    return {method: values for method, values in table.items() if method != "full"}


@dataclass(frozen=True)
class Noise:
    """How much a loss differs from seed to seed, besides what all methods share.

    Attributes:
        deviation: of one loss.
        freedom: degrees of freedom it was estimated with.
        seeds: how many each method has.
        methods: how many there are.
    """

    deviation: float
    freedom: int
    seeds: int
    methods: int

    def half(self, comparisons: int = 1) -> float:
        """Half the 95 % interval of a difference of two means, for so many comparisons at a time (Bonferroni)."""
        quantile = float(stats.t.ppf(1 - 0.025 / comparisons, self.freedom))
        return quantile * self.deviation * math.sqrt(2 / self.seeds)


def complete(table: Mapping[str, Seeded]) -> dict[str, Seeded]:
    """As many seeds as two of three methods have, of the methods that have them."""
    for count in range(len(SEEDS), 0, -1):
        seeds = SEEDS[:count]
        having = {method: values for method, values in table.items() if set(seeds) <= values.keys()}
        if having and len(having) >= 2 / 3 * len(table):
            return {method: {seed: values[seed] for seed in seeds} for method, values in having.items()}
    return {}


def levels(table: Mapping[str, Seeded]) -> dict[str, float]:
    """Means over seeds; of a method with fewer seeds than the others, on the level of those, so that none is better for
    an easy seed."""
    whole = complete(table)
    if not whole:
        return {}
    seeds = list(next(iter(whole.values())))
    typical = {seed: statistics.fmean(values[seed] for values in whole.values()) for seed in seeds}
    level = statistics.fmean(typical.values())
    return {
        method: level + statistics.fmean(values[seed] - typical[seed] for seed in seeds if seed in values)
        for method, values in table.items()
        if typical.keys() & values.keys()
    }


def noise(table: Mapping[str, Seeded]) -> Noise | None:
    """What is left of losses without each method's and each seed's mean; None with one seed or fewer than 3 methods."""
    whole = complete(table)
    seeds = list(next(iter(whole.values()), {}))
    if len(whole) < 3 or len(seeds) < 2:
        return None
    losses_ = np.array([[values[seed] for seed in seeds] for values in whole.values()])
    rest = losses_ - losses_.mean(1, keepdims=True) - losses_.mean(0, keepdims=True) + losses_.mean()
    freedom = (losses_.shape[0] - 1) * (losses_.shape[1] - 1)
    return Noise(float(math.sqrt((rest**2).sum() / freedom)), freedom, len(seeds), len(whole))


def mean(values: Seeded) -> float:
    """Over seeds."""
    return statistics.fmean(values.values())


def tied_with_first(table: Mapping[str, Seeded]) -> list[str]:
    """The methods whose difference from the least mean is within the interval for that many comparisons.

    With one seed there is no interval, and the list is empty.
    """
    spread, means = noise(table), {method: mean(values) for method, values in complete(table).items()}
    if spread is None:
        return []
    half, least = spread.half(len(means) - 1), min(means.values())
    return [method for method in sorted(means, key=means.__getitem__) if means[method] - least <= half]


def places(columns: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean place, of those that are in all columns."""
    methods = set.intersection(*(set(values) for values in columns.values()))
    order = {
        column: stats.rankdata([values[method] for method in sorted(methods)]) for column, values in columns.items()
    }
    return {
        method: statistics.fmean(float(ranks[number]) for ranks in order.values())
        for number, method in enumerate(sorted(methods))
    }


def critical_difference(methods: int, columns: int) -> float:
    """Mean places nearer than this are tied at 5 % (Nemenyi's test, all pairs)."""
    quantile = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * columns))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by Student's t."""
    middle = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half
