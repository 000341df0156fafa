"""The sentences that answer the three questions of docs/results.md, from whatever has been run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cells import ALL, AUTO, AUTO_LORA, NEAREST, SEARCHED, TOOLS, Found
from grids import Grid, Search, best
from names import NAMES, PUBLISHED, title
from reading import (
    columns,
    critical_difference,
    fair_losses,
    less_than_mean,
    levels,
    losses,
    margins,
    paper_cells,
    places,
    tools_over_auto,
)
from scipy import stats

ENOUGH = 0.03
"""How much less than the tools' mean is wanted."""
TABLE_2 = (
    "full", "lora", "rslora", "dora", "lora+", "olora", "pissa", "lora-ga", "adalora", "gora paper", "gora paper r32",
    "gora paper r128",
)  # fmt: skip
"""Methods of the paper's Table 2."""
RANK_8 = tuple(method for method in TABLE_2 if method not in ("full", "gora paper r32", "gora paper r128"))


def named(sets: Sequence[str]) -> str:
    """Sets as in a sentence."""
    names = [title(rows) for rows in sets]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def compared(found: Found, sets: Sequence[str] = ALL) -> dict[str, float]:
    """How much less loss than the tools' mean the preset has, by set, where all have been run."""
    less = {rows: less_than_mean(found, rows) for rows in sets}
    return {rows: value for rows, value in less.items() if value is not None}


def answer_tools(found: Found) -> str:
    """Whether the preset is better than what people use."""
    less = compared(found)
    enough = [rows for rows, value in less.items() if value >= ENOUGH]
    missed = [rows for rows in less if rows not in enough]
    text = (
        f"**Less loss than the mean of five tools' documented settings on {sum(v > 0 for v in less.values())} of "
        f"{len(less)} sets, by at least 3 % on {len(enough)}: {100 * statistics.median(less.values()):.0f} % less in "
        "the middle.**"
    )
    if missed:
        text += f" Not on {', '.join(f'{title(rows)} ({100 * -less[rows]:+.1f} %)' for rows in missed)}."
    over = {name: tools_over_auto(found, name, list(less)) for name in TOOLS}
    nearest = min(TOOLS, key=lambda name: statistics.median(over[name].values()))
    ahead = [rows for rows, value in over[nearest].items() if value < 0]
    text += (
        f" The nearest tool is {NAMES[nearest]}, with {100 * statistics.median(over[nearest].values()):.1f} % more "
        f"loss in the middle, and less on {named(ahead)}."
    )
    lora = tools_over_auto(found, AUTO_LORA, list(less))
    if lora:
        low = sum(value < 0 for value in lora.values())
        text += (
            f" With LoRA in the place of GoRA the preset has {100 * statistics.median(lora.values()):+.1f} % in the "
            f"middle, and less than with GoRA on {low} of {len(lora)}."
        )
    return text


def answer_fair(found: Found) -> str:
    """Whether the preset keeps up with methods whose rate was looked for."""
    every = margins(found)
    text = ""
    for what, sets in (("whose rates were looked for", SEARCHED), ("that took rates over", tuple(NEAREST))):
        here = {rows: every[rows] for rows in sets if rows in every}
        if not here:
            continue
        reached = [rows for rows, one in here.items() if one.reached]
        tied = [rows for rows, one in here.items() if one.tied and rows not in reached]
        shares = [100 * one.share for one in here.values()]
        start = "**`preset: auto` is" if not text else " It is"
        text += (
            f"{start} within 0.5 % of the best tuned method, or below it, on {len(reached)} of {len(here)} sets {what}"
            f" ({statistics.median(shares):+.1f} % in the middle, {max(shares):+.1f} % at worst)."
        )
        text += "**" if start.startswith("**") else ""
        if tied:
            text += f" On {named(tied)} the difference is within noise."
    order = places(columns(found)) if columns(found) else {}
    if order:
        near = critical_difference(len(order), len(columns(found)))
        first = min(order, key=order.__getitem__)
        level = [method for method in sorted(order, key=order.__getitem__) if order[method] - order[first] <= near]
        text += (
            f" Over {len(columns(found))} sets {_plain(first)} has the best mean place of {len(order)}, "
            f"{order[first]:.1f}; places nearer than {near:.1f} are tied, which are "
            f"{', '.join(f'{_plain(method)} ({order[method]:.1f})' for method in level[1:]) or 'none'}."
        )
        if AUTO not in level:
            text += f" `preset: auto` is at {order[AUTO]:.1f}."
    return text


def _plain(method: str) -> str:
    return NAMES[method].replace("**", "")


def gap(found: Found, method: str, other: str) -> list[float]:
    """How much more loss one method ends with than another, each at its own rate, as a share, by set."""
    shares = []
    for rows in ALL:
        every = fair_losses(found, rows)
        shared = sorted(every.get(method, {}).keys() & every.get(other, {}).keys())
        if shared:
            shares.append(statistics.fmean(every[method][seed] / every[other][seed] - 1 for seed in shared))
    return shares


def layers(grids: Mapping[Search, Grid]) -> dict[Search, float]:
    """How much more loss all linear layers end with than attention, at the same number of parameters, as a share."""
    return {
        one: best(grids[one._replace(targets="all-linear")]) / best(grids[one]) - 1
        for one in grids
        if one.targets == "attention" and one._replace(targets="all-linear") in grids
    }


def one_rate(found: Found, rows: str) -> dict[str, float]:
    """Losses at the one rate, of the methods of the paper's Table 2."""
    every = {method: losses(found, paper_cells(rows, method)) for method in TABLE_2}
    return levels({method: values for method, values in every.items() if values})


def agreement(values: Mapping[str, float], score: int) -> float:
    """Rank correlation of losses with the paper's scores (0: GSM8K, 1: HumanEval); 1 is one order."""
    methods = [method for method in TABLE_2 if method in values]
    return float(stats.spearmanr([values[m] for m in methods], [-PUBLISHED[m][score] for m in methods]).statistic)


def own_rates(found: Found, rows: str) -> dict[str, float]:
    """Losses at each one's rate on all linear layers, of the adapters of the paper's Table 2."""
    every = levels(fair_losses(found, rows))
    return {method: every[method] for method in RANK_8 if method in every}


def answer_paper(found: Found) -> str:
    """Whether the paper's order is there."""
    one = [agreement(values, n) for n, rows in enumerate(("math", "code")) if len(values := one_rate(found, rows)) > 4]
    own = [agreement(values, n) for n, rows in enumerate(("math", "code")) if len(values := own_rates(found, rows)) > 4]
    text = f"**At one small rate for all the paper's order is {_strength(one)}"
    text += f"; when each adapter has its own rate it is {_strength(own)}.**" if own else ".**"
    text += f" Rank correlations with its GSM8K and HumanEval: {_figures(one)} at one rate"
    text += f", {_figures(own)} at own rates ({len(own_rates(found, 'math'))} adapters of one size)." if own else "."
    return text


def _strength(values: Sequence[float]) -> str:
    if not values:
        return "not known"
    return "there" if min(values) >= 0.6 else "gone" if max(values) < 0.3 else "there in part"


def _figures(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)
