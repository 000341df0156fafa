"""Charts as SVG inside a page: no script, no network, colours that follow the reader's light or dark setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from gora.report.grid import Grid
from gora.report.palette import VIRIDIS, ink_on

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 32
_TICKS = 4


def line_chart(series: Mapping[str, Points], *, level: tuple[str, float] | None = None) -> str:
    """Lines over the optimizer step, each with its name; empty where there is nothing to draw.

    Args:
        series: points (step, value) by name; those that are not finite are left out.
        level: a name and a value that is drawn as a line across.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    values = [y for points in lines.values() for _, y in points] + ([level[1]] if level else [])
    steps = [x for points in lines.values() for x, _ in points]
    low, high = _padded(min(values), max(values))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f},{_height(y, low, high):.1f}"

    parts = [_axes(first, last, low, high)]
    if level:
        begin, end = place(first, level[1]), place(last, level[1])
        parts.append(f'<path class="level" d="M{begin} L{end}"><title>{escape(level[0])}</title></path>')
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(place(x, y) for x, y in points)
        mark = f"{escape(name)}: {points[-1][1]:.5g} at step {points[-1][0]:.0f}"
        parts.append(f'<polyline class="line c{number % 4}" points="{path}"><title>{mark}</title></polyline>')
        if len(points) < 40:
            spots = [place(x, y).split(",") for x, y in points]
            parts += [f'<circle class="spot c{number % 4}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in spots]
    legend = "".join(f'<span class="key c{number % 4}">{escape(name)}</span>' for number, name in enumerate(lines)) + (
        f'<span class="key level">{escape(level[0])}</span>' if level else ""
    )
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{picture}<figcaption>{legend}</figcaption></figure>"


def heat_map(grid: Grid, ranks: Mapping[str, int]) -> str:
    """A table of ranks, blocks down and kinds across, coloured on a logarithmic scale."""
    cells = {place: ranks[name] for name, place in grid.places.items()}
    present = [rank for rank in ranks.values() if rank > 0] or [1]
    low, high = min(present), max(present)
    head = "".join(f"<th>{escape(kind.rpartition('.')[2])}</th>" for kind in grid.columns)
    body = []
    for row, label in enumerate(grid.rows):
        found = "".join(_cell(cells.get((row, column)), low, high) for column in range(len(grid.columns)))
        body.append(f"<tr><th>{escape(label.label)}</th>{found}</tr>")
    return f'<div class="wide"><table class="heat"><thead><tr><th></th>{head}</tr></thead>{"".join(body)}</table></div>'


def _cell(rank: int | None, low: int, high: int) -> str:
    if rank is None:
        return "<td></td>"
    if not rank:
        return '<td title="no adapter">·</td>'
    share = math.log(rank / low) / math.log(high / low) if low < high else 0.5
    colour = VIRIDIS[round(share * (len(VIRIDIS) - 1))]
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return f'<td style="background:{colour};color:{ink_on(*parts)}">{rank}</td>'


def _axes(first: float, last: float, low: float, high: float) -> str:
    parts = []
    for number in range(_TICKS + 1):
        value = low + (high - low) * number / _TICKS
        height = _height(value, low, high)
        parts.append(f'<path class="grid" d="M{_LEFT},{height:.1f} H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{height + 4:.1f}">{value:.3g}</text>')
    for step in sorted({round(first + (last - first) * number / _TICKS) for number in range(_TICKS + 1)}):
        across = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)
        parts.append(f'<text class="tick" x="{across:.1f}" y="{_HEIGHT - 10}">{step}</text>')
    return "".join(parts)


def _height(value: float, low: float, high: float) -> float:
    return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room if low < 0 or low - room > 0 else 0.0, high + room
