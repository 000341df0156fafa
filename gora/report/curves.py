"""The curves behind a plan's decisions, as small pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gora.plan import Decision, Plan
from gora.report.decisions import value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE, _CHOSEN, _PALE = "#2c728e", "#d55e00", "#767676"


def curves_of(plan: Plan) -> dict[str, Decision]:
    """The decisions of a plan that were chosen from a curve of values above zero."""
    return {
        setting: decision
        for setting, decision in plan.decisions.items()
        if sum(value > 0 for value, _ in decision.curve) > 1
    }


def draw_curve(axes: Axes, setting: str, decision: Decision) -> None:
    """The loss over what was tried, which was chosen, and the loss at 0 as a line where it was tried."""
    tried: Mapping[float, float] = dict(decision.curve)
    positive = sorted((value, loss) for value, loss in tried.items() if value > 0)
    values, losses = zip(*positive, strict=True)
    axes.plot(values, losses, "o-", color=_LINE, markersize=3, linewidth=1)
    axes.set_xscale("log")
    if 0.0 in tried:
        axes.axhline(tried[0.0], color=_PALE, linewidth=1, linestyle="--")
        # What is far above the base would flatten what matters.
        least = min(*losses, tried[0.0])
        above = tried[0.0] + max(tried[0.0] - least, 0.02 * tried[0.0])
        axes.set_ylim(least - 0.1 * (above - least), above)
    if isinstance(decision.value, int | float) and decision.value in tried and decision.value > 0:
        axes.plot([decision.value], [tried[decision.value]], "o", color=_CHOSEN, markersize=7)
    base = ", dashed: the base" if 0.0 in tried else ""
    axes.set_title(f"{setting}: {value_text(decision.value)}", fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel(f"{setting.rpartition('.')[2]} (loss{base})", fontsize=8, parse_math=False)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
