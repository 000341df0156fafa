"""The sentences that answer the three questions of docs/results.md, from whatever has been run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import earlier
from cells import ALL, AUTO, AUTO_LORA, NEAREST, SEARCHED, TOOLS, Found
from grids import Grid, Search
from names import NAMES, NOT_YET, RANK_8, TABLE_2, title
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
from sets import FIRST as EARLIER
from sets import SIZES, Sizes

ENOUGH, FEWEST = 0.03, 5
"""How much less than the tools' mean is wanted, and how many methods make an order."""


def named(sets: Sequence[str]) -> str:
    """Sets as in a sentence."""
    names = [title(rows) for rows in sets]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def compared(found: Found, sets: Sequence[str] = ALL) -> dict[str, float]:
    """How much less loss than the tools' mean the preset has, by set, where it and most tools have been run."""
    less = {rows: less_than_mean(found, rows) for rows in sets}
    return {rows: value for rows, value in less.items() if value is not None}


def settings_of(found: Found, first: Found) -> tuple[Found, Sizes]:
    """The runs that the tools are judged by: these, or those of another machine while those cover more sets."""
    return (found, SIZES) if len(compared(found)) >= len(compared(first)) else (first, EARLIER)


def answer_tools(found: Found, sizes: Sizes) -> str:
    """Whether the preset is better than what people use."""
    less = compared(found)
    if not less:
        return NOT_YET
    enough = [rows for rows, value in less.items() if value >= ENOUGH]
    missed = [rows for rows in less if rows not in enough]
    text = (
        f"**Less loss than the mean of five tools' documented settings on {sum(v > 0 for v in less.values())} of "
        f"{len(less)} sets, by at least 3 % on {len(enough)}: {100 * statistics.median(less.values()):.0f} % less in "
        "the middle.**"
    )
    if missed:
        text += f" Not 3 % less on {', '.join(f'{title(rows)} ({100 * -less[rows]:+.1f} %)' for rows in missed)}."
    over = {name: tools_over_auto(found, name, list(less)) for name in TOOLS}
    nearest = min(TOOLS, key=lambda name: statistics.median(over[name].values()))
    ahead = [rows for rows, value in over[nearest].items() if value < 0]
    text += (
        f" The same {sizes.train:,} rows, one epoch. The nearest tool is {NAMES[nearest]}, with "
        f"{100 * statistics.median(over[nearest].values()):.1f} % more loss in the middle"
    )
    text += f", and less on {named(ahead)}." if ahead else "."
    lacking = {name: [rows for rows in less if rows not in over[name]] for name in TOOLS}
    for name, sets in lacking.items():
        text += f" {NAMES[name]}'s have not been run on {named(sets)}." if sets else ""
    lora = tools_over_auto(found, AUTO_LORA, list(less))
    if lora:
        low = sum(value < 0 for value in lora.values())
        middle = 100 * statistics.median(lora.values())
        where = "higher" if middle > 0 else "lower"
        text += (
            f" With LoRA in the place of GoRA the preset ends {abs(middle):.1f} % {where} in the middle, and lower on "
            f"{low} of {len(lora)} sets."
        )
    return text


def answer_fair(found: Found, grids: Mapping[Search, Grid]) -> str:
    """Whether the preset keeps up with methods whose rate was looked for; while that was not run, GoRA with LoRA."""
    every, text = margins(found), ""
    if not every:
        return earlier.answer(grids)
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


def one_rate(found: Found, rows: str) -> dict[str, float]:
    """Losses at the one rate, of the methods of the paper's Table 2."""
    every = {method: losses(found, paper_cells(rows, method)) for method in TABLE_2}
    return levels({method: values for method, values in every.items() if values})


def own_rates(found: Found, rows: str) -> dict[str, float]:
    """Losses at each one's rate on all linear layers, of the adapters of the paper's Table 2."""
    every = levels(fair_losses(found, rows))
    return {method: every[method] for method in RANK_8 if method in every}


def answer_paper(found: Found) -> str:
    """Whether the paper's order is there, with SmolLM2 or, while that was not run, the 28M model."""
    if len(one_rate(found, "math")) < FEWEST:
        one, own, what = earlier.agreements(own=False), earlier.agreements(own=True), len(RANK_8)
        return _order(one, own, what) + " Losses are those of a model of 28 million parameters."
    one = [
        earlier.agreement(values, n)
        for n, rows in enumerate(("math", "code"))
        if len(values := one_rate(found, rows)) >= FEWEST
    ]
    own = [
        earlier.agreement(values, n)
        for n, rows in enumerate(("math", "code"))
        if len(values := own_rates(found, rows)) >= FEWEST
    ]
    return _order(one, own, len(own_rates(found, "math")))


def _order(one: Sequence[float], own: Sequence[float], adapters: int) -> str:
    text = f"**At one small rate for all the paper's order is {_strength(one)}"
    text += f"; when each adapter has its own rate it is {_strength(own)}.**" if own else ".**"
    text += f" Rank correlations with its GSM8K and HumanEval: {_figures(one)} at one rate"
    return text + (f", {_figures(own)} at own rates ({adapters} adapters of one size)." if own else ".")


def _strength(values: Sequence[float]) -> str:
    if not values:
        return "not known"
    return "there" if min(values) >= 0.6 else "gone" if max(values) < 0.3 else "there in part"


def _figures(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)
