"""The table of a comparison: one row for what is compared, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from gora.files import publish

_TITLES = ("method", "seeds", "evaluation loss", "at the start", "trainable", "seconds", "peak memory")


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        label: what is compared.
        seed: the run's seed.
        failure: why there is no result, or None.
        result: what the run wrote as `evaluation.json`.
        curve: (step, training loss).
    """

    label: str
    seed: int
    failure: str | None
    result: dict[str, Any]
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class Row:
    """All seeds of one label; without any that worked, the figures are None.

    Attributes:
        label: what is compared.
        seeds: those that worked.
        final: mean evaluation loss.
        deviation: sample standard deviation of it; 0 for one seed.
        initial: mean evaluation loss with the initial adapter.
        trainable: trained parameters, the mean over seeds.
        seconds: mean training time.
        peak: greatest peak memory in bytes, of the GPU where there is one.
        failures: why seeds are missing.
    """

    label: str
    seeds: tuple[int, ...]
    final: float | None
    deviation: float | None
    initial: float | None
    trainable: float | None
    seconds: float | None
    peak: int | None
    failures: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The row for a JSON file."""
        return asdict(self)


def summarize(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row a label, in the order of their first run."""
    by_label: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_label.setdefault(outcome.label, []).append(outcome)
    return [_row(label, runs) for label, runs in by_label.items()]


def comparison_table(rows: Sequence[Row]) -> Table:
    """For the terminal; the best is bold, the second best underlined."""
    table = Table(*_TITLES, title="Comparison")
    styles = dict(zip(_ranking(rows), ("bold", "underline"), strict=False))
    for row in rows:
        table.add_row(*_cells(row), style=styles.get(row.label))
        for failure in row.failures:
            table.add_row("", f"failed: {failure}", style="yellow")
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table; the best is bold, the second best in italics."""
    marks = dict(zip(_ranking(rows), ("**", "*"), strict=False))
    lines = [f"| {' | '.join(_TITLES)} |", "|---" * len(_TITLES) + "|"]
    for row in rows:
        cells = _cells(row)
        if mark := marks.get(row.label):
            cells[2] = f"{mark}{cells[2]}{mark}"
        lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| | failed: {failure} |" for failure in row.failures]
    return "\n".join(lines) + "\n"


def plot_curves(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Training loss over steps, the mean over seeds with a band from the least to the greatest.

    Returns:
        Whether there was something to draw, and matplotlib to draw it with.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    by_label: dict[str, list[list[tuple[int, float]]]] = {}
    for outcome in outcomes:
        if outcome.curve:
            by_label.setdefault(outcome.label, []).append(outcome.curve)
    if not by_label:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, curves in by_label.items():
        steps = [step for step, _ in curves[0]]
        at_step = [[dict(curve).get(step, float("nan")) for curve in curves] for step in steps]
        (line,) = axes.plot(steps, [statistics.fmean(values) for values in at_step], label=label)
        least, greatest = [min(values) for values in at_step], [max(values) for values in at_step]
        axes.fill_between(steps, least, greatest, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(frameon=False, ncols=2)
    with publish(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    return True


def _row(label: str, runs: Sequence[Outcome]) -> Row:
    done = [run for run in runs if run.failure is None and "final" in run.result["loss"]]
    failures = [f"seed {run.seed}: {run.failure}" for run in runs if run.failure is not None]
    failures += [f"seed {run.seed}: no evaluation rows" for run in runs if run.failure is None and run not in done]
    if not done:
        return Row(label, (), None, None, None, None, None, None, tuple(failures))
    finals = [run.result["loss"]["final"] for run in done]

    def mean(*keys: str) -> float:
        values = [run.result for run in done]
        for key in keys:
            values = [value[key] for value in values]
        return statistics.fmean(values)  # type: ignore[arg-type]

    peaks = [run.result["peak_bytes"].get("gpu", run.result["peak_bytes"]["host"]) for run in done]
    deviation = statistics.stdev(finals) if len(finals) > 1 else 0.0
    return Row(
        label,
        tuple(run.seed for run in done),
        statistics.fmean(finals),
        deviation,
        mean("loss", "initial"),
        mean("trainable_parameters"),
        mean("seconds"),
        max(peaks),
        tuple(failures),
    )


def _ranking(rows: Sequence[Row]) -> list[str]:
    return [row.label for row in sorted((r for r in rows if r.final is not None), key=lambda r: r.final or 0.0)]


def _cells(row: Row) -> list[str]:
    if row.final is None:
        return [row.label, *[""] * (len(_TITLES) - 1)]
    return [
        row.label,
        str(len(row.seeds)),
        f"{row.final:.4f} ± {row.deviation:.4f}",
        f"{row.initial:.4f}",
        f"{row.trainable:,.0f}",
        f"{row.seconds:.1f}",
        f"{(row.peak or 0) / 1e9:.2f} GB",
    ]
