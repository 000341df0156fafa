"""A formula for the learning rate, fitted on searches whose best rate is known: what it does where it was not fitted.

    python scripts/rates/formula.py

A rate is a number of its method times powers of the model's hidden size, of rank, alpha, steps, and rows a step: the
least squares of the logarithms of the best rates, by a parabola through the lowest loss of a grid and its neighbours.
Searches whose best rate is at an edge of their grid say too little, and are left out; so are those of labels by the
model of 28 million parameters, whose losses are mostly noise (`docs/results-appendix.md`), and the encoder's. The 16
searches of `docs/data/learning-rate.json` are in `rate-trials.json` already.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from choose import APART, above_best
from combinations import ROWS, Combination, combination
from table import rows as rows_of_table

from gora.core.learning_rate import lowest

DATA = Path(__file__).parents[2] / "docs" / "data"
HIDDEN = {"smollm2": 576, "base-28m": 512}
METHODS = {
    "full": "full", "LoRA": "lora", "rsLoRA": "rslora", "DoRA": "dora", "LoRA+": "lora+", "OLoRA": "olora",
    "PiSSA": "pissa", "MiLoRA": "milora", "EVA": "eva", "AdaLoRA": "adalora", "LoRA-Pro": "lora-pro",
    "LoRA-FA": "lora-fa", "LoRA-GA as in PEFT": "lora-ga-peft", "GoRA": "gora paper",
    "GoRA, one rate, equal ranks": "gora", "rsLoRA with rates of LoRA+": "rslora+",
    "rsLoRA r32 with rates of LoRA+": "rslora+",
}  # fmt: skip
"""What `docs/data/results.json` calls methods. All have rank 8 and alpha 16 but where a name says otherwise."""
STUDY = {"results": 1, "results-warm-up": 1, "results-four-epochs": 4}
"""Epochs of the searches of the model of 28 million parameters."""
STEPS_OF_AN_EPOCH = {"math": 111, "code": 63, "instruction": 69}
STUDY_ROWS = 64
"""Of a step there; steps are 7,066, 3,977 and 4,391 rows over it (`docs/results-appendix.md`)."""
SIZES = ("hidden", "rank", "alpha", "steps", "rows_per_step")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A grid of whole runs, and what a formula may know of it."""

    model: str
    rows: str
    method: str
    hidden: int
    rank: int
    alpha: int
    steps: int
    rows_per_step: int
    grid: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float | None:
        """The rate that ends lowest, unless it is at an edge of the grid."""
        rates, losses = zip(*self.grid, strict=True)
        return lowest(rates, losses) if losses.index(min(losses)) not in (0, len(losses) - 1) else None


def of_the_trials() -> list[Search]:
    """The language models of `rate-trials.json`."""
    found = json.loads((DATA / "rate-trials.json").read_text(encoding="utf-8"))["searches"]
    searches = []
    for name, search in found.items():
        what = combination(name)
        if what.model in HIDDEN:
            searches.append(search_of(what, search["grid"]))
    return searches


def search_of(what: Combination, grid: Sequence[Sequence[float]]) -> Search:
    """Of a combination: rank 8 on attention, or as many parameters on all linear layers."""
    return Search(
        model=what.model,
        rows=what.rows,
        method=what.method,
        hidden=HIDDEN[what.model],
        rank=8 if what.targets == "attention" else 3,
        alpha=16,
        steps=what.steps,
        rows_per_step=ROWS,
        grid=tuple(sorted((rate, loss) for rate, loss in grid)),
    )


def of_the_study() -> list[Search]:
    """Those of `results.json` and the two beside it, on texts."""
    searches = []
    for file, epochs in STUDY.items():
        found = json.loads((DATA / f"{file}.json").read_text(encoding="utf-8"))
        for rows, steps in STEPS_OF_AN_EPOCH.items():
            for name, losses in found.get(rows, {"search": {}})["search"].items():
                bare = re.sub(r"^GoRA r\d+$|, alpha \d+$|, warm-up 0.2$", "", name) or "GoRA"
                if bare not in METHODS:
                    continue
                grid = sorted((float(rate), loss) for rate, loss in losses.items())
                # Training that came to no end fell apart.
                apart = APART * grid[0][1]
                rank, alpha = re.search(r" r(\d+)", name), re.search(r"alpha (\d+)", name)
                searches.append(
                    Search(
                        model="base-28m",
                        rows=rows,
                        method=METHODS[bare],
                        hidden=HIDDEN["base-28m"],
                        rank=int(rank[1]) if rank else 8,
                        alpha=int(alpha[1]) if alpha else 16,
                        steps=steps * epochs,
                        rows_per_step=STUDY_ROWS,
                        grid=tuple((rate, apart if loss is None else loss) for rate, loss in grid),
                    )
                )
    return searches


def known_searches() -> list[Search]:
    """All whose best rate lies between two others."""
    return [search for search in of_the_trials() + of_the_study() if search.best is not None]


def fitted(searches: Sequence[Search], sizes: Sequence[str]) -> Callable[[Search], float | None]:
    """The formula: a rate, or None for a method that it has not seen."""
    methods = sorted({search.method for search in searches})
    middle = {size: mean(math.log(getattr(search, size)) for search in searches) for size in sizes}

    def features(search: Search) -> list[float]:
        # Whole weights have no rank and no alpha.
        powers = [
            0.0
            if search.method == "full" and size in ("rank", "alpha")
            else math.log(getattr(search, size)) - middle[size]
            for size in sizes
        ]
        return [float(search.method == method) for method in methods] + powers

    rates = [math.log(search.best) for search in searches if search.best is not None]
    # Of the many fits where sizes never differ, the smallest: such a size changes nothing.
    weights = np.linalg.lstsq(np.array([features(search) for search in searches]), np.array(rates), rcond=1e-9)[0]
    return lambda search: math.exp(np.dot(features(search), weights)) if search.method in methods else None


def same_kind(one: Search, other: Search) -> bool:
    """Other targets, lengths, ranks and warm-ups of what is judged tell its rate."""
    return (one.model, one.rows, one.method) == (other.model, other.rows, other.method)


def same_model(one: Search, other: Search) -> bool:
    """Another model is judged by the fit on one."""
    return one.model == other.model


def judged(searches: Sequence[Search], sizes: Sequence[str], kin: Callable[[Search, Search], bool]) -> list[float]:
    """How far each ends above the best of its grid with a fit on those that are no kin; 1 (100 %) is the most."""
    above = []
    for search in searches:
        rate = fitted([other for other in searches if not kin(search, other)], sizes)(search)
        if rate is not None:
            above.append(min(1.0, max(0.0, above_best(search.grid, rate))))
    return above


FITS: dict[str, Sequence[str]] = {"a number for each method": (), "the same, times powers of the sizes": SIZES}
LEFT_OUT = {"its model, set and method": same_kind, "its model": same_model}


def on_other_combinations() -> list[float]:
    """How far the whole formula ends above the best of the grids of the language models of `rate-judged.json`."""
    formula = fitted(known_searches(), SIZES)
    above = []
    for row in rows_of_table(json.loads((DATA / "rate-judged.json").read_text(encoding="utf-8"))):
        if row["model"] in HIDDEN:
            what = Combination(row["model"], row["set"], row["targets"], row["method"], row["steps"])
            rate = formula(search_of(what, row["grid"]))
            if rate is not None:
                above.append(max(0.0, above_best(row["grid"], rate)))
    return above


def table() -> list[str]:
    """Every fit, judged with every part left out."""
    searches = known_searches()
    lines = ["| the rate is | fitted without | within 1 % | mean | worst |", "|---|---|---|---|---|"]
    for without, kin in LEFT_OUT.items():
        for name, sizes in FITS.items():
            above = judged(searches, sizes, kin)
            near = f"{sum(each <= 0.01 for each in above)} of {len(above)}"
            lines.append(f"| {name} | {without} | {near} | {mean(above):.1%} | {max(above):.1%} |")
    return lines


def main() -> None:
    """Print it."""
    print("\n".join(table()))
    above = on_other_combinations()
    print(
        f"\nOn other combinations {sum(each <= 0.01 for each in above)} of {len(above)}, {mean(above):.1%} on average."
    )


if __name__ == "__main__":
    main()
