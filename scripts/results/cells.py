"""What the evidence runs, in order of value: every cell of its tables, as far as earlier results settle it.

- `tools`: the documented settings of five tools against `preset: auto`, on all sets.
- `fair`: every method with the same trained parameters at its own learning rate, which is looked for on seed 0 among at
  most four rates that lie a factor of 2 apart, on rows that no table is made of; other seeds follow at the best rate.
- `paper`: rank 8 on attention at one rate for all, GoRA at 8, 32 and 128, and with other bounds, first steps and
  importances of ranks.
- `again`: runs that were made on another machine before, on the rows of then.
- `answers`: questions of GSM8K, answered by what the tools' settings and the preset's make of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Settings = dict[str, Any]
Run = dict[str, Any]
Found = Mapping[str, Run]
"""What came of each cell, by its name."""

SEEDS = (1, 2, 3)
SEARCH_SEED, MOST_RATES = 0, 4
GRID = tuple(2.5e-5 * 2**step for step in range(13))
SEARCHED = ("math", "code", "instruction", "sst2")
NEAREST = {"commonsense": "instruction", **dict.fromkeys(("cola", "mrpc", "qnli", "mnli", "rte"), "sst2")}
"""Sets whose rates are not looked for, and the one whose rates they take over."""
SEARCHED_TOO = ("qnli", "mnli")
"""Of those the ones whose rates are looked for all the same, of `TUNED_TOO`: accuracies tell of training there."""
TUNED_TOO = ("lora", "gora auto", "rslora", "dora", "gora paper", "lora+")
ALL = (*SEARCHED, *NEAREST)
DECIDED = (*SEARCHED, "commonsense")
"""Sets that had a part in what `preset: auto` says, or in how it finds a rate; the others are kept to judge it."""
KEPT = tuple(rows for rows in ALL if rows not in DECIDED)
TABLES = ("tools", "fair", "paper", "again", "answers")
COMMON_RATE = 2e-4
"""The one rate of `paper`: four times the paper's, whose runs have 15 times as many steps."""
AUTO = "preset: auto"
AUTO_LORA = "preset: auto, lora"
AGAIN = ("code",)
"""Sets of which `again` is."""
TOOLS = ("peft", "llama-factory", "axolotl", "unsloth", "trl")

_PASS: Settings = {"gora.steps": 16, "gora.micro_batch_size": 16}
_PRESET: Settings = {"preset": "auto"}
METHODS: dict[str, Settings] = {
    "lora": {"adapter.method": "lora"},
    "gora auto": {"adapter.method": "gora", **_PRESET},
    "gora paper": {"adapter.method": "gora", **_PASS},
    "rslora": {"adapter.method": "rslora"},
    "lora+": {"adapter.method": "lora+"},
    "lora-one": {"adapter.method": "lora-one", **_PASS},
    "lora-ga": {"adapter.method": "lora-ga", **_PASS},
    "pissa": {"adapter.method": "pissa"},
    "dora": {"adapter.method": "dora"},
    "full": {"adapter.method": "full"},
    "eva": {"adapter.method": "eva", **_PASS},
    "olora": {"adapter.method": "olora"},
    "adalora": {"adapter.method": "adalora"},
    "lora-pro": {"adapter.method": "lora-pro"},
}
"""Of the table `fair`; `gora auto` has what `preset: auto` says but the rate, which is looked for like the others'."""
LATER = ("eva", "olora", "adalora", "lora-pro")
"""Methods that come after the others."""
PAPER_METHODS: dict[str, Settings] = {
    **{name: METHODS[name] for name in METHODS if name not in ("lora-one", "eva", "lora-pro", "gora auto")},
    "gora paper r32": {**METHODS["gora paper"], "adapter.rank": 32, "gora.gamma": 0.01},
    "gora paper r128": {**METHODS["gora paper"], "adapter.rank": 128, "gora.gamma": 0.005},
}
ABLATIONS: dict[str, Settings] = {
    name: {**METHODS["gora paper"], **more}
    for name, more in {
        "gora 8 to 8": {"gora.rank_min": 8, "gora.rank_max": 8},
        "gora 6 to 15": {"gora.rank_min": 6, "gora.rank_max": 15},
        "gora 0 and up": {"gora.rank_min": 0, "gora.rank_max": "unbounded"},
        "gora gamma 0.08": {"gora.gamma": 0.08},
        "gora gamma 0.03": {"gora.gamma": 0.03},
        "gora gamma 0": {"gora.gamma": 0.0},
        "gora nuclear W*G": {"gora.importance": "nuclear-product"},
        "gora nuclear G": {"gora.importance": "nuclear-gradient"},
    }.items()
}
"""Of the paper's Tables 5 and 6, beside `gora paper`, which has 4 to 32, 0.05 and the mean of |W * G|."""
TARGETS: dict[str, Settings] = {
    "attention": {"adapter.targets": "attention", "adapter.rank": 8},
    "all-linear": {
        "adapter.targets": "all-linear",
        "adapter.rank": "auto",
        "adapter.parameters": "rank 8 on attention",
    },
}
_CENTRE = {
    "full": 4e-4, "lora": 3.2e-3, "rslora": 3.2e-3, "dora": 6.4e-3, "lora+": 8e-4, "pissa": 8e-4, "olora": 8e-4,
    "adalora": 1.28e-2, "lora-pro": 3.2e-3, "lora-ga": 4e-4, "lora-one": 3.2e-3, "eva": 3.2e-3, "gora paper": 4e-4,
    "gora auto": 3.2e-3,
}  # fmt: skip
"""Where the search of a method begins on math and all linear layers; elsewhere half of that, in attention twice."""


class Cell(NamedTuple):
    """One run."""

    table: str
    rows: str
    targets: str
    method: str
    rate: float | str
    """`auto`, `own` for that of a tool, or a number."""
    seed: int

    def __str__(self) -> str:
        rate = self.rate if isinstance(self.rate, str) else f"{self.rate:.4g}"
        return f"{self.table} | {self.rows} | {self.targets} | {self.method} | {rate} | {self.seed}"

    @property
    def searches(self) -> bool:
        """Whether it is a step of a search, on rows to choose by."""
        return self.table == "fair" and self.seed == SEARCH_SEED


def plan(found: Found, tables: Sequence[str] = TABLES) -> Iterator[Cell]:
    """The cells that can be run or have been, the most valuable ones first."""
    for cell in _all(found):
        if cell.table in tables:
            yield cell


def _all(found: Found) -> Iterator[Cell]:
    first, later = tuple(method for method in METHODS if method not in LATER), LATER
    for rows in ALL:
        for name in (AUTO, AUTO_LORA):
            yield Cell("tools", rows, "own", name, "auto", 1)
    yield from again()
    for rows in ("math", "code"):
        yield Cell("tools", rows, "own", AUTO, "auto", 2)
    yield from _fair(found, ("code", "instruction"), ("eva",), 1)
    yield from _fair(found, tuple(NEAREST), ("gora auto",), 1)
    for method in TUNED_TOO:
        yield from _searches(found, SEARCHED_TOO, method)
    for method in first:
        # One method after another, so that the sets that judge the preset have the same ones.
        yield from _fair(found, tuple(NEAREST), (method,), 1)
    yield from _tools(SEARCHED, 1)
    yield from _fair(found, ("math",), first, 1)
    yield from _tools(tuple(NEAREST), 1)
    yield from _fair(found, ("code",), first, 1)
    yield from _paper(("math", "code"), 1)
    yield from _fair(found, ("sst2", "instruction"), first, 1)
    yield from _fair(found, ("math", "code"), first, 2)
    yield from _fair(found, ("math", "code"), first, 3)
    yield from _fair(found, ("math",), later, 1)
    yield from _tools(SEARCHED, 2)
    yield from _ablations(("math", "code"), 1)
    yield from _fair(found, ("sst2", "instruction"), first, 2)
    yield from _fair(found, ("math",), METHODS, 1, "attention")
    yield from _tools(SEARCHED, 3)
    yield from _fair(found, ("sst2", "instruction"), first, 3)
    yield from _paper(("math", "code"), 2)
    yield from _fair(found, tuple(NEAREST), first, 2)
    yield from _tools(tuple(NEAREST), 2)
    for seed in (2, 3):
        yield from _fair(found, ("math",), later, seed)
    yield from _paper(("math", "code"), 3)
    yield from _fair(found, ("code", "sst2", "instruction"), later, 1)
    for seed in (2, 3):
        yield from _fair(found, ("math",), METHODS, seed, "attention")
        yield from _ablations(("math", "code"), seed)
    yield from _tools(tuple(NEAREST), 3)
    yield from _fair(found, tuple(NEAREST), METHODS, 3)
    yield from _fair(found, ("code",), METHODS, 1, "attention")
    for name in (AUTO, AUTO_LORA, *TOOLS):
        yield Cell("answers", "math", "own", name, _rate_of(name), 1)


def _rate_of(name: str) -> str:
    return "auto" if name in (AUTO, AUTO_LORA) else "own"


def _tools(sets: Sequence[str], seed: int) -> Iterator[Cell]:
    for rows in sets:
        for name in (AUTO, *TOOLS, AUTO_LORA):
            yield Cell("tools", rows, "own", name, _rate_of(name), seed)


def again() -> Iterator[Cell]:
    """What was run on another machine before."""
    for rows in AGAIN:
        for name in (AUTO, AUTO_LORA, *TOOLS):
            yield Cell("again", rows, "own", name, _rate_of(name), 1)


def _paper(sets: Sequence[str], seed: int) -> Iterator[Cell]:
    for rows in sets:
        for method in PAPER_METHODS:
            yield Cell("paper", rows, "attention", method, COMMON_RATE, seed)


def _ablations(sets: Sequence[str], seed: int) -> Iterator[Cell]:
    for rows in sets:
        for method in ABLATIONS:
            yield Cell("paper", rows, "attention", method, COMMON_RATE, seed)


def _fair(
    found: Found, sets: Sequence[str], methods: Iterable[str], seed: int, targets: str = "all-linear"
) -> Iterator[Cell]:
    """Searches that are not over, and the seed of methods whose search is; the preset's beside them."""
    for rows in sets:
        if targets == "all-linear":
            yield Cell("tools", rows, "own", AUTO, "auto", seed)
        for method in methods:
            if rows in SEARCHED:
                for rate in _tried(found, rows, targets, method):
                    yield Cell("fair", rows, targets, method, rate, SEARCH_SEED)
            rate = best_rate(found, rows, targets, method) or rate_taken_over(found, rows, targets, method)
            if rate is not None:
                yield Cell("fair", rows, targets, method, rate, seed)


def _searches(found: Found, sets: Sequence[str], method: str) -> Iterator[Cell]:
    """Searches on sets that have rates taken over, and one seed at the rates that they end with."""
    for rows in sets:
        for rate in _tried(found, rows, "all-linear", method):
            yield Cell("fair", rows, "all-linear", method, rate, SEARCH_SEED)
        if (best := best_rate(found, rows, "all-linear", method)) is not None:
            yield Cell("fair", rows, "all-linear", method, best, 1)


def rate_taken_over(found: Found, rows: str, targets: str, method: str) -> float | None:
    """The best rate of the set that is nearest; None while that is not known, or where there is none."""
    return best_rate(found, NEAREST[rows], targets, method) if rows in NEAREST else None


def losses_of_search(found: Found, rows: str, targets: str, method: str) -> dict[float, float]:
    """Eval loss by rate of the grid, as far as they have been run; infinite where training fell apart."""
    losses = {}
    for rate in GRID:
        run = found.get(str(Cell("fair", rows, targets, method, rate, SEARCH_SEED)))
        if run is not None:
            losses[rate] = run["loss"]["final"] if "loss" in run else math.inf
    return losses


def _tried(found: Found, rows: str, targets: str, method: str) -> list[float]:
    """Rates that have been tried, or are to be tried now."""
    losses = losses_of_search(found, rows, targets, method)
    start = _start(rows, targets, method)
    tried = {_at(start + step) for step in (0, -1, 1)}
    while tried <= losses.keys() and len(tried) < MOST_RATES:
        best = GRID.index(min(tried, key=losses.__getitem__))
        further = {_at(best - 1), _at(best + 1)} - tried
        if not further:
            break
        tried |= further
    return sorted(tried, key=lambda rate: abs(math.log(rate / GRID[start])))


def _start(rows: str, targets: str, method: str) -> int:
    wanted = _CENTRE[method] * (1 if rows == "math" else 0.5) * (2 if targets == "attention" else 1)
    return min(range(1, len(GRID) - 1), key=lambda place: abs(math.log(GRID[place] / wanted)))


def _at(place: int) -> float:
    return GRID[max(0, min(place, len(GRID) - 1))]


def best_rate(found: Found, rows: str, targets: str, method: str) -> float | None:
    """Where a parabola through the least loss and its neighbours is least; None while the search goes on.

    Losses are taken over the logarithm of the rate. Where a neighbour was not tried or fell apart, the rate of the
    least loss counts.
    """
    losses = losses_of_search(found, rows, targets, method)
    if not losses or not set(_tried(found, rows, targets, method)) <= losses.keys():
        return None
    best = min(losses, key=losses.__getitem__)
    if losses[best] == math.inf:
        return None
    place = GRID.index(best)
    around = [losses.get(GRID[at], math.inf) if 0 <= at < len(GRID) else math.inf for at in (place - 1, place + 1)]
    if math.inf in around:
        return best
    below, above = around
    bend = below - 2 * losses[best] + above
    shift = 0.5 * (below - above) / bend if bend > 0 else 0.0
    return float(f"{best * 2**shift:.3g}")
