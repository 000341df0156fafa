"""The table of `judge.py`'s runs: how far the rate that gora found ends from the best of its grid, and what it took.

python scripts/rates/table.py judged.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from choose import above_best

from gora.core.learning_rate import COMMON_RATES, KNOWN_FORM

PROPORTIONAL = 2.0
"""The rates of `docs/data/rate-judged.json` are the best of trials over `TRIALS_OVER_RUN`, and lower in proportion to
the loss at the adapter's start over this, where it is more."""
TEXTS = ("math", "code", "instruction")
"""Sets whose answers are more than a word or a few."""


def best_between(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The least loss on a parabola through the lowest three in log rate, or the lowest itself at an end.

    Returns:
        Rate and loss.
    """
    points = sorted(points)
    lowest = min(range(len(points)), key=lambda index: points[index][1])
    if lowest in (0, len(points) - 1):
        return points[lowest]
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(rate), loss) for rate, loss in points[lowest - 1 : lowest + 2])
    slope0, slope1 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (slope1 - slope0) / (x2 - x0)
    if curvature <= 0:
        return points[lowest]
    x = (x0 + x1) / 2 - slope0 / (2 * curvature)
    value = y0 + slope0 * (x - x0) + curvature * (x - x0) * (x - x1)
    return math.exp(x), min(value, y1)


def rows(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each combination whose automatic runs and grid are there; losses are means over its seeds."""
    by_name: dict[str, list[list[dict[str, Any]]]] = {}
    # The seed whose rate the grid is around comes first.
    for name, runs in sorted(found.items(), key=lambda item: len(item[0].split(" seed "))):
        ended = [run for run in runs if "loss" in run and math.isfinite(run["loss"]["final"])]
        by_name.setdefault(name.split(" seed ")[0], []).append(ended)
    result = []
    for name, seeds in by_name.items():
        autos = [run for ended in seeds for run in ended if run.get("auto")]
        if len(autos) < len(seeds):
            continue
        # The grid is around the rate that the first seed found; another's own rate is of it only where it is the same.
        middle = next(run["rate"] for run in seeds[0] if run.get("auto"))
        grid = [[run for run in ended if run["rate"] == middle or not run.get("auto")] for ended in seeds]
        losses = [{run["rate"]: run["loss"]["final"] for run in ended} for ended in grid]
        points = [(rate, mean(each[rate] for each in losses)) for rate in losses[0] if all(rate in e for e in losses)]
        if len(points) < 3:
            continue
        auto = mean(run["loss"]["final"] for run in autos)
        model, data, targets, *method, steps = name.split(" ")
        result.append(
            {
                "model": model,
                "set": data,
                "targets": targets,
                "method": " ".join(method),
                "steps": int(steps),
                "base": mean(run["loss"]["base"] for run in autos),
                "start": mean(run["loss"]["initial"] for run in autos),
                "rates": [run["rate"] for run in autos],
                "loss": auto,
                "best rate": best_between(points)[0],
                "above the best of the grid": auto / min(auto, *(loss for _, loss in points)) - 1,
                "grid": sorted(points),
                "seeds": len(seeds),
            }
        )
    return result


def rate_that_ships(row: dict[str, Any]) -> float:
    """What `auto` would take now, where it took another rate in the run."""
    if row["model"] == "minilm":
        return COMMON_RATES["classification"] / (4.0 if row["method"] == "lora+" else 1.0)
    judged, ships = max(1.0, row["start"] / PROPORTIONAL), math.sqrt(max(1.0, row["start"] / KNOWN_FORM))
    return row["rates"][0] * judged / ships


def above_with_what_ships(row: dict[str, Any]) -> float:
    """How far a row would end above the best of its grid with the rule that ships, read off its grid."""
    return above_best(row["grid"], rate_that_ships(row))


def table(judged: list[dict[str, Any]]) -> list[str]:
    """Its lines, texts first."""
    lines = [
        "| model, set, targets | method | base | rates found | loss | best of the grid | above it | now, read off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(judged, key=lambda row: row["set"] not in TEXTS):
        above = row["above the best of the grid"]
        grid, rates = row["loss"] / (1 + above), ", ".join(f"{rate:.2g}" for rate in row["rates"])
        now = "" if row["set"] in TEXTS else f"{rate_that_ships(row):.2g}: {max(0.0, above_with_what_ships(row)):.1%}"
        lines.append(
            f"| {row['model']}, {row['set']}, {row['targets']} | {row['method']} | {row['base']:.4f} | "
            f"{rates} | {row['loss']:.4f} | {grid:.4f} (near {row['best rate']:.2g}) | {above:.1%} | {now} |"
        )
    return lines


def seconds(found: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    """By model, the medians of what finding a rate added to a run, and of a run with a given rate."""
    added: dict[str, list[float]] = {}
    given: dict[str, list[float]] = {}
    for name, runs in found.items():
        model = name.split(" ")[0]
        auto = [run["seconds"] for run in runs if run.get("auto")]
        others = [run["seconds"] for run in runs if not run.get("auto")]
        if auto and others:
            added.setdefault(model, []).append(auto[0] - median(others))
            given.setdefault(model, []).append(median(others))
    return {model: (median(added[model]), median(given[model])) for model in added}


def main() -> None:
    """Print it."""
    found = json.loads(Path(sys.argv[1]).read_text())
    judged = rows(found)
    print("\n".join(table(judged)))
    within = sum(row["above the best of the grid"] <= 0.01 for row in judged)
    print(f"\n{within} of {len(judged)} within 1 % of the grid's best.")
    for model, (added, given) in seconds(found).items():
        print(f"{model}: {added:.0f} s to find a rate, {given:.0f} s for a run with a given one")


if __name__ == "__main__":
    main()
