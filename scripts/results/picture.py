"""A picture of eval loss against learning rate, for the methods and sets that were searched, as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from grids import Grid, Search
from names import title as named

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 400, 230, 56, 30, 14
_COLOURS = {
    "full": "#555555", "lora": "#000000", "rslora": "#17becf", "dora": "#8c564b", "lora+": "#2ca02c",
    "pissa": "#9467bd", "lora-ga": "#e377c2", "lora-one": "#1f77b4", "gora paper": "#ff7f0e", "gora auto": "#d62728",
    "eva": "#bcbd22", "olora": "#aec7e8", "adalora": "#98df8a", "lora-pro": "#c49c94",
}  # fmt: skip
_STRONG = ("lora", "gora paper", "gora auto")
_SHOWN = 0.25
"""How far above the least loss of a set a panel goes at most, as a share."""
_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def rates_picture(
    grids: Mapping[Search, Grid], panels_: Sequence[tuple[str, str, int]], names: Mapping[str, str]
) -> str:
    """Panels and a legend.

    Args:
        grids: losses by rate.
        panels_: up to four of set, layers and steps, each with a search at least.
        names: of methods.
    """
    panels = [_panel(grids, *panel, number) for number, panel in enumerate(panels_)]
    legend = []
    shown = {one.method for one in grids if (one.rows, one.targets, one.steps) in panels_}
    for number, method in enumerate(method for method in _COLOURS if method in shown):
        x, y = 20 + (number % 5) * 164, 2 * (_HEIGHT + _GAP) + 16 + (number // 5) * 18
        legend.append(f'<path d="M{x},{y - 4} h18" {_stroke(method)}/>')
        legend.append(f'<text x="{x + 24}" y="{y}">{escape(names[method].replace("`", ""))}</text>')
    size = f'viewBox="0 0 {2 * (_WIDTH + _GAP)} {2 * (_HEIGHT + _GAP) + 66}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(panels + legend)}</svg>\n'
    )


def _panel(grids: Mapping[Search, Grid], rows: str, targets: str, steps: int, number: int) -> str:
    left, top = (number % 2) * (_WIDTH + _GAP), (number // 2) * (_HEIGHT + _GAP)
    curves = {s.method: grid for s, grid in grids.items() if (s.rows, s.targets, s.steps) == (rows, targets, steps)}
    losses = [loss for curve in curves.values() for loss in curve.values()]
    low = min(losses)
    high = min(max(losses), low * (1 + _SHOWN))

    def place(rate: float, loss: float) -> tuple[float, float]:
        across = math.log(rate / _RATES[0]) / math.log(_RATES[-1] / _RATES[0])
        up = (loss - low) / (high - low)
        return left + _LEFT + across * (_WIDTH - _LEFT - 8), top + _HEIGHT - 24 - up * (_HEIGHT - _TOP - 34)

    title = f"{named(rows)}, {targets}, {steps} steps: eval loss by rate"
    parts = [f'<text x="{left + _LEFT}" y="{top + 18}" font-weight="bold">{title}</text>']
    for rate in _RATES:
        x, y = place(rate, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{rate:g}</text>')
    for step in range(5):
        loss = low + (high - low) * step / 4
        (x, y), (end, _) = place(_RATES[0], loss), place(_RATES[-1], loss)
        parts.append(f'<path d="M{x:.1f},{y:.1f} H{end:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{loss:.3f}</text>')
    for method, curve in curves.items():
        # What is far above the panel, or fell apart, leaves through its top.
        points = [place(rate, min(loss, high)) for rate, loss in _near(sorted(curve.items()), high)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" {_stroke(method)}><title>{escape(method)}</title></polyline>')
    return "".join(parts)


def _near(curve: list[tuple[float, float]], high: float) -> list[tuple[float, float]]:
    """The points within a panel, and where the lines to the next ones cross its top."""
    kept = []
    for number, (rate, loss) in enumerate(curve):
        if loss <= high:
            kept.append((rate, loss))
            continue
        for beside in (number - 1, number + 1):
            if 0 <= beside < len(curve) and curve[beside][1] <= high:
                other, inside = curve[beside]
                share = 0.0 if math.isinf(loss) else (high - inside) / (loss - inside)
                kept.append((other * (rate / other) ** share, high))
    return sorted(kept)


def _stroke(method: str) -> str:
    dash = ' stroke-dasharray="5 3"' if method == "full" else ""
    return f'fill="none" stroke="{_COLOURS[method]}" stroke-width="{2.6 if method in _STRONG else 1.3}"{dash}'
