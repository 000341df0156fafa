"""What the raw runs say of accuracies: which rows were answered right, intervals, and what says something at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from cells import ALL, AUTO, Cell, Found
from reading import tool_cells
from sets import SETS

DRAWS = 4000
Answered = dict[int, np.ndarray]
"""By seed, 1 for each row that was answered right and 0 for the others."""


def task_of(found: Found, cells: Iterable[Cell], task: str, side: str = "trained") -> dict[int, dict[str, Any]]:
    """A task's figures and rows, by seed."""
    runs = {cell.seed: found.get(str(cell), {}).get("tasks", {}).get(task, {}) for cell in cells}
    return {seed: sides[side] for seed, sides in runs.items() if side in sides}


def right(task: Mapping[int, Mapping[str, Any]]) -> Answered:
    """Which rows were answered right, by seed."""
    return {seed: np.array([int(digit) for digit in one["right"]]) for seed, one in task.items()}


def tasks_of(rows: str) -> list[str]:
    """The tasks of a set that accuracies are measured of."""
    return list(SETS[rows].sources) if SETS[rows].task == "choice" else []


def accuracy_columns() -> list[tuple[str, str]]:
    """Set and task of everything that accuracies were measured of."""
    return [(rows, task) for rows in ALL for task in tasks_of(rows)]


def answered(found: Found, cells: Sequence[Cell], rows: str) -> Answered:
    """The rows of all tasks of a set, one after the other, of the seeds that have them all."""
    tasks = [right(task_of(found, cells, task)) for task in tasks_of(rows)]
    seeds = set.intersection(*map(set, tasks)) if tasks else set()
    return {seed: np.concatenate([task[seed] for task in tasks]) for seed in sorted(seeds)}


def main_figure(one: Mapping[str, Any]) -> float:
    """The first figure of a task."""
    return float(next(iter(one["metrics"].values())))


def base_of(found: Found, rows: str, task: str) -> dict[str, Any] | None:
    """What the base model reached."""
    return task_of(found, tool_cells(rows, AUTO), task, "base").get(1)


def accuracy(found: Found, cells: Sequence[Cell], rows: str, task: str) -> tuple[float, bool] | None:
    """Mean accuracy over seeds, and whether it is told from chance and from the base model's; None if not measured."""
    mine = task_of(found, cells, task)
    if not mine:
        return None
    reached = sum(main_figure(one) for one in mine.values()) / len(mine)
    base = base_of(found, rows, task)
    against = [one["chance"] for one in mine.values() if "chance" in one][:1] + ([main_figure(base)] if base else [])
    return reached, says_something(reached, len(next(iter(right(mine).values()))), against)


def to_beat(found: Found, rows: str) -> list[float]:
    """Accuracies over all tasks of a set that say nothing of training: chance, and the base model's if known."""
    bases = [one for task in tasks_of(rows) if (one := base_of(found, rows, task))]
    counts = [len(one["right"]) for one in bases]
    if not bases or len(bases) < len(tasks_of(rows)):
        return []
    return [
        float(np.average([one["chance"] for one in bases], weights=counts)),
        float(np.average([main_figure(one) for one in bases], weights=counts)),
    ]


def says_something(accuracy: float, rows: int, against: Sequence[float]) -> bool:
    """Whether an accuracy is further than two standard errors from each of some others, such as chance."""
    return all(abs(accuracy - other) > 2 * standard_error(accuracy, rows) for other in against)


def standard_error(accuracy: float, rows: int) -> float:
    """Of an accuracy on so many rows."""
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-9) / rows)


def accuracy_interval(one: Answered, other: Answered, comparisons: int = 1) -> tuple[float, float, float]:
    """Difference of two accuracies on the same rows and seeds, and its 95 % interval: bootstrap over seeds and rows.

    Args:
        one: of the runs whose accuracy is taken.
        other: of those whose accuracy is taken away.
        comparisons: how many are made at a time (Bonferroni).
    """
    shared = sorted(one.keys() & other.keys())
    gaps = np.array([one[seed] - other[seed] for seed in shared], dtype=float)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        seeds = draw.integers(0, gaps.shape[0], gaps.shape[0])
        rows = draw.integers(0, gaps.shape[1], gaps.shape[1])
        found.append(gaps[np.ix_(seeds, rows)].mean())
    low, high = np.quantile(found, (0.025 / comparisons, 1 - 0.025 / comparisons))
    return float(gaps.mean()), float(low), float(high)
