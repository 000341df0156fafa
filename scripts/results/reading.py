"""What the raw runs of the evidence say: means, differences on the same seeds with intervals, places, accuracies."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import ALL, AUTO, COMMON_RATE, METHODS, NEAREST, SEEDS, TOOLS, Cell, Found, best_rate
from scipy import stats

DATA = Path(__file__).parents[2] / "docs" / "data"
RAW, FIRST = DATA / "evidence.json", DATA / "evidence-first.json"
"""The runs of the page, and those that another machine made before."""
Seeded = dict[int, float]
DRAWS = 2000


def read(path: Path = RAW) -> Found:
    """All cells by name."""
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found


def tool_cells(rows: str, name: str) -> list[Cell]:
    """All seeds of a tool, or of the preset, on a set."""
    rate = "auto" if name.startswith(AUTO) else "own"
    return [Cell("tools", rows, "own", name, rate, seed) for seed in SEEDS]


def fair_cells(found: Found, rows: str, targets: str, method: str) -> list[Cell]:
    """All seeds of a method at its best rate; none while that is not known."""
    rate = best_rate(found, NEAREST.get(rows, rows), targets, method)
    return [] if rate is None else [Cell("fair", rows, targets, method, rate, seed) for seed in SEEDS]


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


def difference(one: Seeded, other: Seeded) -> tuple[float, int]:
    """Mean difference on the seeds that both have, and how many those are."""
    shared = sorted(one.keys() & other.keys())
    return statistics.fmean(one[seed] - other[seed] for seed in shared), len(shared)


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


def columns(found: Found, fewest: int = 8) -> dict[str, dict[str, float]]:
    """Mean losses of all adapters by set, where the preset and so many methods have been run."""
    tables = {rows: complete(adapters(fair_losses(found, rows))) for rows in ALL}
    return {
        rows: {method: mean(values) for method, values in table.items()}
        for rows, table in tables.items()
        if AUTO in table and len(table) > fewest
    }


def task_of(found: Found, cells: Iterable[Cell], task: str, side: str = "trained") -> dict[int, dict[str, Any]]:
    """A task's figures and rows, by seed."""
    runs = {cell.seed: found.get(str(cell), {}).get("tasks", {}).get(task, {}) for cell in cells}
    return {seed: sides[side] for seed, sides in runs.items() if side in sides}


def right(task: Mapping[int, Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Which rows were answered right, by seed."""
    return {seed: np.array([int(digit) for digit in one["right"]]) for seed, one in task.items()}


def accuracy_interval(one: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> tuple[float, float, float]:
    """Difference of two accuracies on the same rows and seeds, and its 95 % interval: bootstrap over seeds and rows."""
    shared = sorted(one.keys() & other.keys())
    gaps = np.array([one[seed] - other[seed] for seed in shared], dtype=float)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        seeds = draw.integers(0, gaps.shape[0], gaps.shape[0])
        rows = draw.integers(0, gaps.shape[1], gaps.shape[1])
        found.append(gaps[np.ix_(seeds, rows)].mean())
    low, high = np.quantile(found, (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def says_something(accuracy: float, rows: int, against: Sequence[float]) -> bool:
    """Whether an accuracy is further than two standard errors from each of some others, such as chance."""
    error = math.sqrt(max(accuracy * (1 - accuracy), 1e-9) / rows)
    return all(abs(accuracy - other) > 2 * error for other in against)


def tools_over_auto(found: Found, name: str, sets: Sequence[str] = ALL) -> dict[str, float]:
    """How much more loss a tool's settings end with than `preset: auto`, as a share, on the seeds that both have."""
    more = {}
    for rows in sets:
        mine, theirs = losses(found, tool_cells(rows, AUTO)), losses(found, tool_cells(rows, name))
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            more[rows] = statistics.fmean(theirs[seed] / mine[seed] - 1 for seed in shared)
    return more


@dataclass(frozen=True, kw_only=True)
class Margin:
    """`preset: auto` against the best method whose rate was looked for, with the same parameters.

    Attributes:
        best: that method.
        share: how much more loss the preset ends with.
        half: half the 95 % interval of it, for one comparison; None with one seed.
        seeds: how many both have.
    """

    best: str
    share: float
    half: float | None
    seeds: int

    @property
    def reached(self) -> bool:
        """Whether it is no more than half a per cent."""
        return self.share <= 0.005

    @property
    def tied(self) -> bool:
        """Whether the interval holds 0."""
        return self.half is not None and abs(self.share) <= self.half


def margins(found: Found) -> dict[str, Margin]:
    """By set, where the preset and some methods have been run."""
    made = {}
    for rows in ALL:
        table = complete(adapters(fair_losses(found, rows)))
        if AUTO in table and len(table) > 3:
            means = {method: mean(values) for method, values in table.items()}
            best = min((method for method in means if method != AUTO), key=means.__getitem__)
            spread = noise(table)
            half = None if spread is None else spread.half() / means[best]
            made[rows] = Margin(best=best, share=means[AUTO] / means[best] - 1, half=half, seeds=len(table[AUTO]))
    return made


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


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval, by Student's t."""
    middle = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half
