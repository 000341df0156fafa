"""The table of a comparison: one row for what is compared, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from gora.files import publish
from gora.runs.failure import Failure

_FRONT = ("method", "seeds", "evaluation loss")
_BACK = ("at the start", "trainable", "seconds", "peak memory")


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over seeds; one seed has no deviation."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.deviation is not None else "")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one run.

    Attributes:
        label: what is compared.
        seed: the run's seed.
        failure: why there is no result, or None.
        result: what the run wrote as `results.json`.
        curve: (step, training loss).
    """

    label: str
    seed: int
    failure: Failure | None
    result: dict[str, Any]
    curve: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """All seeds of one label; without any that worked, the figures are None.

    Attributes:
        label: what is compared.
        seeds: those that worked.
        loss: evaluation loss after training.
        tasks: the main figure of each task that all of these seeds have finished, by task and metric.
        initial: mean evaluation loss with the initial adapter.
        trainable: trained parameters, the mean over seeds.
        seconds: mean training time.
        peak: greatest peak memory in bytes, of the GPU where there is one.
        failures: why seeds are missing: `seed`, `code` and `message` of each.
        worse_than_base: seeds whose adapter has a higher evaluation loss than the base model.
    """

    label: str
    seeds: tuple[int, ...]
    loss: Statistic | None
    tasks: dict[str, Statistic]
    initial: float | None
    trainable: float | None
    seconds: float | None
    peak: int | None
    failures: tuple[dict[str, Any], ...]
    worse_than_base: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row for a JSON file."""
        return asdict(self)


def summarize(outcomes: Iterable[Outcome]) -> list[TableRow]:
    """One row a label, in the order of their first run."""
    by_label: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_label.setdefault(outcome.label, []).append(outcome)
    return [_row(label, runs) for label, runs in by_label.items()]


def comparison_table(rows: Sequence[TableRow]) -> Table:
    """For the terminal; in every column of results the best is bold and the second best underlined."""
    tasks = _tasks(rows)
    table = Table(*_FRONT, *tasks, *_BACK, title="Comparison")
    marks = {"best": "bold", "second": "underline"}
    for row in rows:
        cells = [Text(cell) for cell in _cells(row, tasks)]
        for column, place in _places(row, rows, tasks).items():
            cells[column].stylize(marks[place])
        table.add_row(*cells)
        for line in _remarks(row):
            table.add_row("", line, style="yellow")
    return table


def markdown(rows: Sequence[TableRow]) -> str:
    """The same as a Markdown table; the best is bold, the second best in italics."""
    tasks = _tasks(rows)
    titles = (*_FRONT, *tasks, *_BACK)
    marks = {"best": "**", "second": "*"}
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = _cells(row, tasks)
        for column, place in _places(row, rows, tasks).items():
            cells[column] = f"{marks[place]}{cells[column]}{marks[place]}"
        lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| | {line} |" for line in _remarks(row)]
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


def _row(label: str, runs: Sequence[Outcome]) -> TableRow:
    done = [run for run in runs if run.failure is None and "final" in run.result["loss"]]
    failures = [_failed(run, run.failure.code, run.failure.message) for run in runs if run.failure is not None]
    failures += [
        _failed(run, "no-rows", "no evaluation rows") for run in runs if run.failure is None and run not in done
    ]
    if not done:
        return TableRow(
            label=label,
            seeds=(),
            loss=None,
            tasks={},
            initial=None,
            trainable=None,
            seconds=None,
            peak=None,
            failures=tuple(failures),
        )

    def mean(*keys: str) -> float:
        return statistics.fmean(_found(run, *keys) for run in done)

    peaks = [run.result["peak_bytes"].get("gpu", run.result["peak_bytes"]["host"]) for run in done]
    return TableRow(
        label=label,
        seeds=tuple(run.seed for run in done),
        loss=Statistic.of([_found(run, "loss", "final") for run in done]),
        tasks=_task_figures(done),
        initial=mean("loss", "initial"),
        trainable=mean("trainable_parameters"),
        seconds=mean("seconds"),
        peak=max(peaks),
        failures=tuple(failures),
        worse_than_base=tuple(run.seed for run in done if run.result.get("worse_than_base", False)),
    )


def _failed(run: Outcome, code: str, message: str) -> dict[str, Any]:
    return {"seed": run.seed, "code": code, "message": message}


def _remarks(row: TableRow) -> list[str]:
    worse = ", ".join(map(str, row.worse_than_base))
    return [*map(_told, row.failures), *([f"worse than its base: seed {worse}"] if worse else [])]


def _told(failure: Mapping[str, Any]) -> str:
    return f"failed: seed {failure['seed']}: {str(failure['message']).splitlines()[0]}"


def _found(run: Outcome, *keys: str) -> float:
    value: Any = run.result
    for key in keys:
        value = value[key]
    return float(value)


def _task_figures(done: Sequence[Outcome]) -> dict[str, Statistic]:
    values: dict[str, list[float]] = {}
    for run in done:
        for task, sides in run.result.get("tasks", {}).items():
            if metrics := sides.get("trained", {}).get("metrics"):
                name, value = next(iter(metrics.items()))
                values.setdefault(f"{task} {name}", []).append(value)
    return {title: Statistic.of(each) for title, each in values.items() if len(each) == len(done)}


def _tasks(rows: Sequence[TableRow]) -> list[str]:
    return list(dict.fromkeys(title for row in rows for title in row.tasks))


def _places(row: TableRow, rows: Sequence[TableRow], tasks: Sequence[str]) -> dict[int, str]:
    """In which columns a row is the best or the second best: the least loss, the greatest figure of a task."""
    found = {}
    results = [(2, {each.label: -each.loss.mean for each in rows if each.loss})]
    results += [
        (len(_FRONT) + number, {each.label: each.tasks[task].mean for each in rows if task in each.tasks})
        for number, task in enumerate(tasks)
    ]
    for column, values in results:
        order = sorted(values, key=lambda label: -values[label])
        if row.label in order[:2]:
            found[column] = ("best", "second")[order.index(row.label)]
    return found


def _cells(row: TableRow, tasks: Sequence[str]) -> list[str]:
    if row.loss is None:
        return [row.label, *[""] * (len(_FRONT) + len(tasks) + len(_BACK) - 1)]
    return [
        row.label,
        str(len(row.seeds)),
        str(row.loss),
        *(str(row.tasks.get(task, "")) for task in tasks),
        f"{row.initial:.4f}",
        f"{row.trainable:,.0f}",
        f"{row.seconds:.1f}",
        f"{(row.peak or 0) / 1e9:.2f} GB",
    ]
