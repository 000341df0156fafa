"""What a plan decided, for people (`rank_report`) and for programs (`rank_data`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from gora.plan import Plan
from gora.report.decisions import decisions_table
from gora.report.grid import arrange
from gora.report.heatmap import HeatMap
from gora.report.summary import Bound, KindSummary, clipped, parameter_ratio, summarize_kinds

_NAMES_SHOWN = 3
_LEFT_OUT_BELOW = {74: ("\nparameters", "share\nof all"), 56: ("clipped\nr_min", "\nr_max")}
"""Columns that the table by kind gives up in a narrower terminal, so that none of its figures gets cut."""


def rank_report(plan: Plan, taken: Mapping[str, Any] | None = None) -> Group:
    """Decisions, ranks by layer and kind, a table by kind, the settings and the totals, to print on any console.

    Args:
        plan: the plan.
        taken: tokens a second, seconds and memory of its gradient pass, where they are known.
    """
    grid = arrange(module.name for module in plan.modules)
    decided = clipped(plan)
    return Group(
        decisions_table(plan),
        Text(),
        HeatMap(grid, {module.name: module.rank for module in plan.modules}),
        Text(),
        _KindTable(summarize_kinds(plan, grid, decided)),
        Text(),
        _facts(plan, decided, taken or {}),
    )


def rank_data(plan: Plan) -> dict[str, Any]:
    """The plan's document with totals, the ratio to LoRA, statistics by kind and clipped modules; ready for JSON."""
    grid = arrange(module.name for module in plan.modules)
    decided = clipped(plan)
    return plan.model_dump(mode="json") | {
        "parameters": plan.parameters,
        "lora_parameters": plan.lora_parameters,
        "ratio": parameter_ratio(plan),
        "rank_zero": _rank_zero(plan),
        "clipped": {bound: _at(bound, decided) for bound in ("rank_min", "rank_max")},
        "kinds": [asdict(kind) for kind in summarize_kinds(plan, grid, decided)],
    }


class _KindTable:
    """One line a kind; short headers on two lines, so that 80 columns hold all figures of any model and most names."""

    def __init__(self, kinds: Sequence[KindSummary]) -> None:
        self._kinds = kinds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures: dict[str, list[str]] = {
            "\nlayers": [str(kind.layers) for kind in self._kinds],
            " rank\nmin": [str(kind.rank_min) for kind in self._kinds],
            "\nmean": [f"{kind.rank_mean:.1f}" for kind in self._kinds],
            "\nmax": [str(kind.rank_max) for kind in self._kinds],
            "\nparameters": [f"{kind.parameters:,}" for kind in self._kinds],
            "share\nof all": [_percent(kind.parameter_share) for kind in self._kinds],
            "impor-\ntance": [_percent(kind.importance_share) for kind in self._kinds],
            "clipped\nr_min": [str(kind.clipped_at_rank_min) for kind in self._kinds],
            "\nr_max": [str(kind.clipped_at_rank_max) for kind in self._kinds],
        }
        for width, headers in _LEFT_OUT_BELOW.items():
            if options.max_width < width:
                figures = {header: cells for header, cells in figures.items() if header not in headers}
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
        table.add_column("\nkind", overflow="fold")
        for header in figures:
            table.add_column(header, justify="right", no_wrap=True)
        for kind, *cells in zip(self._kinds, *figures.values(), strict=True):
            table.add_row(Text(kind.kind), *cells)
        yield table


def _facts(plan: Plan, decided: dict[str, Bound], taken: Mapping[str, Any]) -> Table:
    """Settings and totals, under keys as wide as those that the stages print."""
    facts = Table.grid(padding=0)
    facts.add_column(width=10, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("model", Text(plan.model.name))
    facts.add_row("gradients", f"{plan.steps} micro-batches of {plan.micro_batch_size}, seed {plan.seed}")
    if taken:
        facts.add_row("", _taken(taken))
    facts.add_row(
        "settings",
        f"gamma {plan.gamma:g}, alpha {plan.alpha:g}, reference rank {plan.reference_rank}, "
        f"r_min {plan.rank_min}, r_max {_r_max(plan)}, importance {plan.importance}, budget {plan.budget}, "
        f"{_allocation(plan)}{_start(plan)}",
    )
    if told := _signal(plan):
        facts.add_row("signal", Text(told))
    for number, sentence in enumerate(_clipping(plan, decided)):
        facts.add_row("" if number else "clipped", Text(sentence))
    for number, module in enumerate(module for module in plan.modules if module.experts is not None):
        rows, columns = module.shape
        told = f"{module.name}: {module.experts} experts of {rows} x {columns}, rank {module.rank} each"
        facts.add_row("" if number else "experts", Text(told))
    zero, total = _rank_zero(plan), len(plan.modules)
    facts.add_row(
        "rank 0", Text(f"{len(zero)} of {total} layers get no adapter: {_some(zero)}" if zero else "no layer")
    )
    ratio = parameter_ratio(plan)
    compared = "" if ratio is None else f", {ratio:.2f}x LoRA at rank {plan.reference_rank} ({plan.lora_parameters:,})"
    facts.add_row("trainable", f"{plan.parameters:,} parameters{compared}")
    return facts


def _allocation(plan: Plan) -> str:
    """How importances became ranks, where it is not the paper's rule."""
    if plan.allocation == "proportional":
        return ""
    temperature = "" if plan.temperature is None else f" at T {plan.temperature:g}"
    return f"allocation {plan.allocation}{temperature}, "


_DIRECTIONS = {
    "random": "drawn at random",
    "gradient": "along the gradient",
    "sign": "along the signs of the gradient",
}
_STEPS = {
    "gradient": "",
    "spectral": ", gamma is the spectral norm of a layer's step",
    "weight": ", gamma is of the norm of a layer's weight",
    "weight-spectral": ", gamma is of the spectral norm of a layer's weight",
}


def _start(plan: Plan) -> str:
    """Where A comes from, and what differs from the paper's step."""
    exact = ", in exact size" if plan.scale == "exact" and plan.step == "gradient" and plan.init_a == "random" else ""
    balanced = ", balanced with B" if plan.balance else ""
    return f"A {_DIRECTIONS.get(plan.init_a, plan.init_a)}{balanced}{_STEPS.get(plan.step, '')}{exact}"


def _taken(taken: Mapping[str, Any]) -> str:
    memory = ", ".join(f"{size / 1e9:.2f} GB on the {place}" for place, size in taken["peak_bytes"].items())
    rate = f"{taken['tokens_per_second']:,.0f} {taken.get('unit', 'tokens')}/s"
    return (
        f"{rate}, {taken['seconds']['gradients']:.1f} s, in {taken['processes']} "
        f"process{'' if taken['processes'] == 1 else 'es'} ({taken['engine']}); at most {memory}"
    )


def _signal(plan: Plan) -> str:
    """How much of the gradients' norm is no noise; empty where it is not known."""
    shares = sorted((module.signal, module.name) for module in plan.modules if module.signal is not None)
    if not shares:
        return ""
    (least, name), middle, (most, _) = shares[0], shares[len(shares) // 2][0], shares[-1]
    return (
        f"{_percent(middle)} of the norm of a gradient in the middle, {_percent(least)} ({name}) to {_percent(most)}; "
        "the rest is noise"
    )


def _clipping(plan: Plan, decided: dict[str, Bound]) -> list[str]:
    """One sentence for each bound that decided a rank."""
    ranks = {module.name: module.rank for module in plan.modules}
    how = "on" if plan.budget == "parameters" else "clipped to"
    sentences = []
    for bound, limit, shown in (
        ("rank_min", plan.rank_min, f"r_min {plan.rank_min}"),
        ("rank_max", plan.rank_max, f"r_max {_r_max(plan)}"),
    ):
        if names := _at(bound, decided):
            by_width = "" if all(ranks[name] == limit for name in names) else ", or to the width of a narrower layer"
            sentences.append(f"{len(names)} of {len(plan.modules)} layers {how} {shown}{by_width}: {_some(names)}")
    return sentences or ["no layer"]


def _r_max(plan: Plan) -> str:
    return "unbounded" if plan.rank_max is None else str(plan.rank_max)


def _rank_zero(plan: Plan) -> list[str]:
    return [module.name for module in plan.modules if module.rank == 0]


def _at(bound: str, decided: dict[str, Bound]) -> list[str]:
    return [name for name, found in decided.items() if found == bound]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
