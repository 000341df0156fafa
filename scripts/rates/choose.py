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

from gora.core.learning_rate import KNOWN_FORM, lowest, rate_below

Search = dict[str, Any]
COUNTED, APART = 4, 2.0
"""One in so many of a trial's losses, its last, are its end; it is over at so many times the loss at the start."""
AROUND = slice(1, 4)
"""Of the five rates: half of what the range test says, that, and twice as much."""


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


def start_of(search: Search, shape: str) -> float:
    """The loss of the rows of trials before training."""
    return mean(search["trials"][shape][0][1])


def trial_ends(search: Search, shape: str) -> tuple[list[float], list[float]]:
    """Rates and ends as `gora.probing.trials` counts them."""
    (_, before), *trials = search["trials"][shape]
    counted = max(1, round(len(before) / COUNTED))
    worst = APART * mean(before[-counted:])
    ends = []
    for _, losses in trials:
        last = losses[-counted:]
        whole = len(losses) == len(before) and None not in last
        ends.append(min(mean(last), worst) if whole else worst)
    return [rate for rate, _ in trials], ends


def three_trials(search: Search, shape: str) -> float:
    """The rate of three trials."""
    rates, ends = trial_ends(search, shape)
    return lowest(rates[AROUND], ends[AROUND])


def four_trials(search: Search, shape: str) -> float:
    """The same, with one beyond where the lowest or the highest is the best."""
    rates, ends = trial_ends(search, shape)
    low, middle, high = ends[AROUND]
    first, last = AROUND.start, AROUND.stop
    if low == min(low, middle, high):
        first -= 1
    elif high == min(low, middle, high):
        last += 1
    return lowest(rates[first:last], ends[first:last])


def by_form(search: Search, shape: str) -> float:
    """The same, lower for rows of an unknown form, as `gora.core.learning_rate.rate_of_trials` has it."""
    return four_trials(search, shape) / math.sqrt(max(1.0, start_of(search, shape) / KNOWN_FORM))


WAYS: dict[str, Callable[[Search], float]] = {
    "range test, 8 rows a step": lambda search: rate_below(search["limits"]["8"][0]),
    "range test, 4 rows a step": lambda search: rate_below(search["limits"]["4"][0]),
    "three trials, 12 steps of 16 rows": lambda search: three_trials(search, "12x16"),
    "a fourth beyond": lambda search: four_trials(search, "12x16"),
    "three trials, 48 steps of 4 rows": lambda search: three_trials(search, "48x4"),
    "a fourth beyond, 48 steps of 4 rows": lambda search: four_trials(search, "48x4"),
    "the same, by the loss at the start": lambda search: by_form(search, "48x4"),
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
