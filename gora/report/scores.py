"""The table that an evaluation ends with."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def scores_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Metrics by task and side; where there are two sides, the base first, their difference too."""
    both = any(len(sides) > 1 for sides in found.values())
    columns = ("base", "trained", "difference") if both else tuple(next(iter(found.values())))
    table = Table("task", "metric", *columns, title="Evaluation", title_justify="left")
    for task, sides in found.items():
        for metric in next(iter(sides.values())):
            values = [metrics[metric] for metrics in sides.values()]
            cells = [f"{value:.4f}" for value in values] + ([f"{values[1] - values[0]:+.4f}"] if both else [])
            table.add_row(task, metric, *cells)
    return table
