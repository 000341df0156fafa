"""Ways to a rate, on the searches of `trials.py`, each with the factor of the other searches.

python scripts/rates/choose.py docs/data/rate-trials.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from gora.core.learning_rate import lowest, rate_below

Search = dict[str, Any]
COUNTED, APART = 3, 2.0
THREE, FOUR = (2, 4, 6), (2, 4, 6, 8)
"""Of the nine rates: half of what the range test says, that, twice, and four times as much."""


def above_best(grid: Sequence[Sequence[float]], rate: float) -> float:
    """How far a rate ends above the best of a grid, as a share, between its points by a parabola in log rate."""
    points = sorted((math.log(tried), loss) for tried, loss in grid)
    least, at = min(loss for _, loss in points), math.log(rate)
    if at <= points[0][0] or at >= points[-1][0]:
        (x0, y0), (x1, y1) = points[:2] if at <= points[0][0] else points[-2:]
        return max(0.0, y0 + (at - x0) * (y1 - y0) / (x1 - x0)) / least - 1
    right = next(index for index, (x, _) in enumerate(points) if x >= at)
    nearest = right if points[right][0] - at < at - points[right - 1][0] else right - 1
    middle = min(max(nearest, 1), len(points) - 2)
    (x0, y0), (x1, y1), (x2, y2) = points[middle - 1 : middle + 2]
    curve = (
        y0 * (at - x1) * (at - x2) / (x0 - x1) / (x0 - x2)
        + y1 * (at - x0) * (at - x2) / (x1 - x0) / (x1 - x2)
        + y2 * (at - x0) * (at - x1) / (x2 - x0) / (x2 - x1)
    )
    (left, low), (over, high) = points[right - 1], points[right]
    straight = low + (at - left) * (high - low) / (over - left)
    # A parabola may dip below all that was measured, or rise above a straight line where the loss leaps.
    return min(max(curve, least), straight) / least - 1


def trial_ends(search: Search, draw: int) -> tuple[list[float], list[float]]:
    """Rates and ends as `gora.probing.trials` counts them."""
    worst = APART * search["start"]
    rates = [rate for rate, _ in search["trials"][draw]]
    ends = []
    for _, losses in search["trials"][draw]:
        last = losses[-COUNTED:]
        ends.append(worst if None in last else min(sum(last) / COUNTED, worst))
    return rates, ends


def by_trials(search: Search, draw: int, *, fourth: bool) -> float:
    """The rate of three trials, and of a fourth one where the loss falls on and on."""
    rates, ends = trial_ends(search, draw)
    low, middle, high = (ends[index] for index in THREE)
    chosen = FOUR if fourth and high == min(low, middle, high) and middle - high > 0.5 * (low - middle) else THREE
    return lowest([rates[index] for index in chosen], [ends[index] for index in chosen])


WAYS: dict[str, Callable[[Search], float]] = {
    "range test of 45 steps": lambda search: rate_below(search["limit"]),
    "three trials around it, first draw": lambda search: by_trials(search, 0, fourth=False),
    "three trials around it, second draw": lambda search: by_trials(search, 1, fourth=False),
    "a fourth where the loss falls on, first draw": lambda search: by_trials(search, 0, fourth=True),
    "a fourth where the loss falls on, second draw": lambda search: by_trials(search, 1, fourth=True),
    "all nine trials, first draw": lambda search: lowest(*trial_ends(search, 0)),
    "all nine trials, second draw": lambda search: lowest(*trial_ends(search, 1)),
}


def best(search: Search) -> float:
    """The rate that ends lowest in whole runs."""
    rates, losses = zip(*sorted(search["grid"]), strict=True)
    return lowest(rates, losses)


def judged(searches: Sequence[Search], way: Callable[[Search], float]) -> tuple[float, list[float]]:
    """The middle of a way's rate over the best one, and how far each search ends above its best with the others'."""
    ratios = [way(search) / best(search) for search in searches]
    above = [
        above_best(search["grid"], way(search) / median(ratios[:index] + ratios[index + 1 :]))
        for index, search in enumerate(searches)
    ]
    return median(ratios), above


def language_models(found: dict[str, Search]) -> list[Search]:
    """Without the encoder, whose new head is noise."""
    return [search for name, search in found.items() if not name.startswith("minilm")]


def main() -> None:
    """Print the table."""
    searches = language_models(json.loads(Path(sys.argv[1]).read_text())["searches"])
    print("| way | its rate over the best | within 1 % | within 2 % | mean | worst |\n|---|---|---|---|---|---|")
    for name, way in WAYS.items():
        ratio, above = judged(searches, way)
        within = [sum(each <= limit for each in above) for limit in (0.01, 0.02)]
        print(f"| {name} | {ratio:.2f} | {within[0]} of {len(above)} | {within[1]}", end="")
        print(f" | {mean(above):.1%} | {max(above):.1%} |")


if __name__ == "__main__":
    main()
