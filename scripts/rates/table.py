"""The table of `judge.py`'s runs: how far the rate that gora found ends from the best of its grid.

python scripts/rates/table.py judged.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


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
    """One row a combination whose automatic run and grid are there."""
    result = []
    for name, runs in found.items():
        ended = [run for run in runs if "loss" in run and math.isfinite(run["loss"]["final"])]
        auto = next((run for run in ended if run.get("auto")), None)
        if auto is None or len(ended) < 4:
            continue
        rate, _ = best_between([(run["rate"], run["loss"]["final"]) for run in ended])
        grid = min(run["loss"]["final"] for run in ended)
        model, rows, targets, *method, steps = name.split(" ")
        result.append(
            {
                "model": model,
                "set": rows,
                "targets": targets,
                "method": " ".join(method),
                "steps": int(steps),
                "base": auto["loss"]["base"],
                "rate": auto["rate"],
                "loss": auto["loss"]["final"],
                "best rate": rate,
                "above the best of the grid": auto["loss"]["final"] / grid - 1,
                "runs": len(ended),
                "steps of the test": len(auto["curve"]),
            }
        )
    return result


def main() -> None:
    """Print it."""
    judged = rows(json.loads(Path(sys.argv[1]).read_text()))
    print("| model, set, targets | method | base | rate found | loss | best of the grid | above it |")
    print("|---|---|---|---|---|---|---|")
    for row in judged:
        above = row["above the best of the grid"]
        grid = row["loss"] / (1 + above)
        print(
            f"| {row['model']}, {row['set']}, {row['targets']} | {row['method']} | {row['base']:.4f} | "
            f"{row['rate']:.2g} | {row['loss']:.4f} | {grid:.4f} (near {row['best rate']:.2g}) | {above:.1%} |"
        )
    within = sum(row["above the best of the grid"] <= 0.01 for row in judged)
    worse = sum(row["loss"] > row["base"] for row in judged)
    print(f"\n{within} of {len(judged)} within 1 % of the grid's best; {worse} above the base model's loss.")


if __name__ == "__main__":
    main()
