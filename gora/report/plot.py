"""A picture of a plan: ranks of every block and kind, what each kind costs beside LoRA, and curves of decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gora.errors import InputError, pip_extra
from gora.files import publish
from gora.plan import Plan
from gora.report.curves import curves_of, draw_curve
from gora.report.grid import Grid, arrange
from gora.report.palette import VIRIDIS, ink_on
from gora.report.summary import KindSummary, clipped, parameter_ratio, summarize_kinds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = ("png", "svg")
_PER_LAYER = 0.27
"""Inches of a column of the heat map, with good room for its number."""
_WIDEST = 13.0
"""Inches of the heat map: columns of deeper models get narrower."""
_PER_KIND = 0.32
_BARS = 2.6
_CURVES = 2.4
"""Inches at the foot for the curves of decisions, where a plan has any."""
_FITS_NUMBER = 0.2
_SMALL = 7.5
_INK, _PALE, _MISSING, _MARK = "#222222", "#767676", "#f2f2f2", "#d55e00"
_LEGEND: dict[str, Any] = {
    "ncols": 2,
    "frameon": False,
    "borderpad": 0,
    "handlelength": 1.2,
    "columnspacing": 1.4,
    "reverse": True,
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "gora",
}


def plot_ranks(plan: Plan, path: Path) -> None:
    """Write a heat map of the ranks, one column a block and one row a kind, with bars of parameters by kind.

    Args:
        plan: the plan.
        path: the picture; `.png` or `.svg` says which.

    Raises:
        InputError: another suffix, a plan without layers, or matplotlib is not installed.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in _FORMATS:
        raise InputError(f"{path}: a plot is a .png or an .svg file.")
    if not plan.modules:
        raise InputError(f"{path}: the plan has no layers to plot.")
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError(f"Plots need matplotlib, which is not installed: {pip_extra('plot')}.") from None

    # The user's own matplotlibrc is left out, so that a plan always gives the same picture.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # Neither file says when or by which version of matplotlib it was made.
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure = _draw(plan)
        with publish(path) as aside:
            figure.savefig(aside, format=form, dpi=160, metadata=metadata)


def _draw(plan: Plan) -> Figure:
    from matplotlib.figure import Figure

    grid = arrange(module.name for module in plan.modules)
    kinds = summarize_kinds(plan, grid, clipped(plan))
    map_width = min(max(_PER_LAYER * len(grid.rows), 2.0), _WIDEST)
    map_height = max(_PER_KIND * len(kinds), 0.9)
    # Everything is placed in inches, so that a small plan and a deep one get the same margins.
    left, gap, right, above, foot = 0.35 + 0.075 * max(map(len, grid.columns)), 0.25, 0.8, 0.85, 1.05
    curves = curves_of(plan)
    lowest = _CURVES if curves else 0.0
    below = lowest + foot
    width, height = left + map_width + gap + _BARS + right, below + map_height + above
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, y / height, w / width, h / height))

    ranks = [module.rank for module in plan.adapted]
    colours = _Colours(min(ranks, default=1), max(ranks, default=1))
    bars = axes(left + map_width + gap, below, _BARS, map_height)
    _draw_ranks(axes(left, below, map_width, map_height), plan, grid, colours, map_width / len(grid.rows))
    _draw_parameters(bars, kinds, plan.reference_rank)
    _draw_scale(axes(left, lowest + 0.3, min(2.4, map_width), 0.1), colours, rank_zero=len(ranks) < len(plan.modules))
    corner = ((left + map_width + gap) / width, (lowest + 0.35) / height)
    figure.legend(*bars.get_legend_handles_labels(), loc="center left", bbox_to_anchor=corner, **_LEGEND)
    figure.text(0.12 / width, 1 - 0.3 / height, _title(plan), fontsize=12, fontweight="bold", parse_math=False)
    figure.text(0.12 / width, 1 - 0.53 / height, _subtitle(plan), color=_PALE)
    share = (width - left - right) / max(len(curves), 1)
    for number, (setting, decision) in enumerate(curves.items()):
        draw_curve(axes(left + number * share, 0.6, min(share - 0.6, 4.0), lowest - 1.0), setting, decision)
    return figure


class _Colours:
    """The scale of a plan's ranks: logarithmic, since ranks compare as multiples."""

    def __init__(self, low: int, high: int) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, LogNorm

        self.low, self.high = low, high
        # A plan of one rank gets the middle of the scale.
        scale = LogNorm(low, high) if low < high else LogNorm(low / 2, low * 2)
        self.mapping = ScalarMappable(scale, LinearSegmentedColormap.from_list("ranks", VIRIDIS))


def _draw_ranks(axes: Axes, plan: Plan, grid: Grid, colours: _Colours, column_width: float) -> None:
    import numpy as np
    from matplotlib.colors import to_rgba

    ranks = np.full((len(grid.columns), len(grid.rows)), -1)
    for module in plan.modules:
        block, kind = grid.places[module.name]
        ranks[kind, block] = module.rank
    pixels = colours.mapping.to_rgba(ranks.clip(min=colours.low))
    pixels[ranks == 0], pixels[ranks < 0] = to_rgba("white"), to_rgba(_MISSING)
    axes.imshow(pixels, aspect="auto", interpolation="nearest")
    for (kind, block), rank in np.ndenumerate(ranks):
        if rank == 0 or (rank > 0 and column_width >= _FITS_NUMBER):
            ink = ink_on(*pixels[kind, block, :3])
            axes.text(block, kind, str(rank) if rank else "·", ha="center", va="center", fontsize=_SMALL, color=ink)
    axes.set_yticks(range(len(grid.columns)), grid.columns)
    _label_blocks(axes, grid, column_width)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _label_blocks(axes: Axes, grid: Grid, column_width: float) -> None:
    """Numbers under the columns, and under each stack of blocks its name, with a line between the stacks."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(grid.rows):
        groups.setdefault(row.group, []).append(number)
    label_width = 0.1 + 0.065 * max(len(row.index) for row in grid.rows)
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100) if step * column_width >= label_width), 500)
    ticks = [number for members in groups.values() for number in members[::step]]
    axes.set_xticks(ticks, [grid.rows[number].index for number in ticks], fontsize=_SMALL)
    for group, members in groups.items():
        middle = (members[0] + members[-1]) / 2
        place: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "ha": "center",
            "va": "top",
        }
        axes.annotate(group or "layer", (middle, 0), (0, -16), **place)
        if members[0]:
            axes.axvline(members[0] - 0.5, color="white", linewidth=4)


def _draw_parameters(axes: Axes, kinds: list[KindSummary], reference_rank: int) -> None:
    places = range(len(kinds))
    lora = [kind.lora_parameters for kind in kinds]
    axes.barh(places, [kind.parameters for kind in kinds], height=0.62, color=VIRIDIS[3], label="this plan")
    axes.plot(lora, places, "|", color=_MARK, markersize=12, markeredgewidth=2, label=f"LoRA at rank {reference_rank}")
    longest = max(max(kind.parameters, kind.lora_parameters) for kind in kinds)
    # The figures stand in a column of their own: behind the bars, LoRA's mark would come between.
    for place, kind in zip(places, kinds, strict=True):
        axes.text(1.27 * longest, place, _short(kind.parameters), ha="right", va="center", fontsize=8)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 1.03 * longest)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xlabel("trainable parameters", loc="left")


def _draw_scale(axes: Axes, colours: _Colours, *, rank_zero: bool) -> None:
    axes.text(-0.02, 0.5, "rank", ha="right", va="center", transform=axes.transAxes)
    if rank_zero:
        axes.text(1.04, 0.5, "· no adapter", va="center", transform=axes.transAxes)
    if colours.low == colours.high:
        axes.text(0.0, 0.5, str(colours.low), va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    bar = axes.figure.colorbar(colours.mapping, cax=axes, orientation="horizontal")
    ticks = sorted({round(colours.low * (colours.high / colours.low) ** (step / 4)) for step in range(5)})
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks], fontsize=_SMALL)
    bar.set_ticks([], minor=True)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _title(plan: Plan) -> str:
    name = plan.model.name
    return name if len(name) <= 60 else f"…{name[-59:]}"


def _subtitle(plan: Plan) -> str:
    ratio = parameter_ratio(plan)
    compared = "" if ratio is None else f", {ratio:.2f}x LoRA at rank {plan.reference_rank}"
    return f"{plan.parameters:,} trainable parameters in {len(plan.adapted)} of {len(plan.modules)} layers{compared}"


def _short(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:#.3g}".rstrip(".") + f" {unit}"
    return str(count)
