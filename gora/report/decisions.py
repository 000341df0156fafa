"""What a plan decided before any rank: each setting, who decided it and why."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gora.plan import Decision, Plan


def decisions_of(plan: Plan) -> dict[str, Decision]:
    """The plan's decisions; of an earlier gora's plan, which has none, those that its settings say."""
    if plan.decisions:
        return plan.decisions
    said = {
        "gora.allocation": plan.allocation,
        "gora.importance": plan.importance,
        "gora.init_a": plan.init_a,
        "gora.step": plan.step,
        "gora.gamma": plan.gamma,
        "gora.steps": plan.steps,
    }
    return {setting: Decision(value=value, origin="recipe") for setting, value in said.items()}


def decisions_table(plan: Plan) -> Table:
    """One line a setting, the grounds beside those that were measured; to print on any console."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("decided", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from")
    table.add_column("why", overflow="fold")
    for setting, decision in decisions_of(plan).items():
        table.add_row(setting, Text(value_text(decision.value)), decision.origin, Text(decision.why))
    return table


def value_text(value: Any) -> str:
    """A decided value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)
