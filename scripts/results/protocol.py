"""The sentences of docs/results.md about the paper's protocol: its order at one rate, and at each method's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import earlier
from cells import Found
from names import NOT_YET, RANK_8, TABLE_2, named, title
from reading import fair_losses, levels, losses, paper_cells

FEWEST = 5
"""How many methods make an order."""


def one_rate(found: Found, rows: str) -> dict[str, float]:
    """Losses at the one rate, of the methods of the paper's Table 2."""
    every = {method: losses(found, paper_cells(rows, method)) for method in TABLE_2}
    return levels({method: values for method, values in every.items() if values})


def own_rates(found: Found, rows: str) -> dict[str, float]:
    """Losses at each one's rate on all linear layers, of the adapters of the paper's Table 2."""
    every = levels(fair_losses(found, rows))
    return {method: every[method] for method in RANK_8 if method in every}


def agreements(found: Found, *, own: bool) -> list[float]:
    """Rank correlations of losses on math and code with the paper's GSM8K and HumanEval, where enough has been run."""
    tables = [(own_rates if own else one_rate)(found, rows) for rows in ("math", "code")]
    return [earlier.agreement(values, n) for n, values in enumerate(tables) if len(values) >= FEWEST]


def answer_paper(found: Found) -> str:
    """Whether the paper's order is there."""
    one, own = agreements(found, own=False), agreements(found, own=True)
    if not one:
        return NOT_YET
    text = f"**At one small rate for all the paper's order is {_strength(one)} (rank correlation {_figures(one)})"
    return text + (f"; at each method's own rate it is {_strength(own)} ({_figures(own)}).**" if own else ".**")


def more_of_paper(found: Found) -> str:
    """Where GoRA as published stands at one rate, and at each adapter's own; and the same of a smaller model."""
    parts = [
        f"{_place(one_rate(found, rows), rows)} at one rate" + _at_own(own_rates(found, rows))
        for rows in ("math", "code")
        if "gora paper" in one_rate(found, rows)
    ]
    if not parts:
        return NOT_YET
    one, own = (_figures(earlier.agreements(own=each)) for each in (False, True))
    return (
        f"Of adapters of one size GoRA as published is {named(parts)}. The correlations of a model of 28 million "
        f"parameters, with three seeds, are {one} at one rate and {own} at own rates."
    )


def _place(values: Mapping[str, float], rows: str) -> str:
    order = sorted((method for method in RANK_8 if method in values), key=values.__getitem__)
    return f"{order.index('gora paper') + 1} of {len(order)} on {title(rows)}"


def _at_own(values: Mapping[str, float]) -> str:
    if "gora paper" not in values:
        return ""
    order = sorted(values, key=values.__getitem__)
    more = values["gora paper"] / values[order[0]] - 1
    return f" and {order.index('gora paper') + 1} of {len(order)} at own rates ({100 * more:+.1f} % from the first)"


def _strength(values: Sequence[float]) -> str:
    return "there" if min(values) >= 0.6 else "gone" if max(values) < 0.3 else "there in part"


def _figures(values: Sequence[float]) -> str:
    return named([f"{value:.2f}" for value in values])
