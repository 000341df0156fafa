"""A picture of eval loss against learning rate, for all methods and sets that were searched, as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from cells import AUTO, GRID, METHODS, SEARCHED, Found, losses_of_search
from reading import tool_cells

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 400, 230, 56, 30, 14
_COLOURS = (
    "#555555", "#000000", "#7f7f7f", "#bcbd22", "#17becf", "#8c564b", "#e377c2", "#c5b0d5", "#9467bd", "#2ca02c",
    "#98df8a", "#1f77b4", "#ff7f0e", "#d62728",
)  # fmt: skip
_STRONG = ("lora", "gora paper", "gora auto")
_SHOWN = 0.12
"""How far above the least loss of a set a panel goes, as a share."""


def rates_picture(found: Found, names: Mapping[str, str]) -> str:
    """Four panels and a legend. A vertical line is the rate that `preset: auto` found (first seed)."""
    panels = [_panel(found, rows, number) for number, rows in enumerate(SEARCHED)]
    legend = []
    for number, method in enumerate(METHODS):
        x, y = 20 + (number % 5) * 164, 2 * (_HEIGHT + _GAP) + 16 + (number // 5) * 18
        legend.append(f'<path d="M{x},{y - 4} h18" {_stroke(number, method)}/>')
        legend.append(f'<text x="{x + 24}" y="{y}">{escape(names[method].replace("`", ""))}</text>')
    height = 2 * (_HEIGHT + _GAP) + 66
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (_WIDTH + _GAP)} {height}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(panels + legend)}</svg>\n'
    )


def _panel(found: Found, rows: str, number: int) -> str:
    left, top = (number % 2) * (_WIDTH + _GAP), (number // 2) * (_HEIGHT + _GAP)
    curves = {method: losses_of_search(found, rows, "all-linear", method) for method in METHODS}
    finite = [loss for curve in curves.values() for loss in curve.values() if loss < math.inf]
    parts = [f'<text x="{left + _LEFT}" y="{top + 18}" font-weight="bold">{rows}, eval loss by rate</text>']
    if not finite:
        return "".join(parts)
    low, high = min(finite), min(finite) * (1 + _SHOWN)

    def place(rate: float, loss: float) -> tuple[float, float]:
        across = math.log(rate / GRID[0]) / math.log(GRID[-1] / GRID[0])
        up = (min(loss, high) - low) / (high - low)
        return left + _LEFT + across * (_WIDTH - _LEFT - 8), top + _HEIGHT - 24 - up * (_HEIGHT - _TOP - 34)

    for rate in GRID[::3]:
        x, y = place(rate, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{rate:g}</text>')
    for step in range(5):
        loss = low + (high - low) * step / 4
        (x, y), (end, _) = place(GRID[0], loss), place(GRID[-1], loss)
        parts.append(f'<path d="M{x:.1f},{y:.1f} H{end:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{loss:.3f}</text>')
    auto = found.get(str(tool_cells(rows, AUTO)[0]), {})
    if "rate" in auto:
        (x, y), (_, end) = place(auto["rate"], low), place(auto["rate"], high)
        parts.append(f'<path d="M{x:.1f},{y:.1f} V{end:.1f}" stroke="#d62728" stroke-dasharray="4 3"/>')
    for index, (method, curve) in enumerate(curves.items()):
        points = [place(rate, loss) for rate, loss in sorted(curve.items()) if loss < math.inf]
        if points:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            name = f"<title>{escape(method)}</title>"
            parts.append(f'<polyline points="{line}" {_stroke(index, method)}>{name}</polyline>')
    return "".join(parts)


def _stroke(number: int, method: str) -> str:
    dash = ' stroke-dasharray="5 3"' if method == "full" else ""
    return f'fill="none" stroke="{_COLOURS[number]}" stroke-width="{2.6 if method in _STRONG else 1.3}"{dash}'
