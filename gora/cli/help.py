"""Help in plain text: commands and options in groups, with their whole descriptions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from inspect import cleandoc
from typing import Any

from typer.core import TyperCommand, TyperGroup

TRAIN, USE, LOOK = "Train", "Use the result", "Look"
"""Groups of commands."""
OPTIONS = "Options"


class PlainCommand(TyperCommand):
    """A command whose options stand in their groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those without a group first."""
        _write_options(self.get_params(ctx), ctx, formatter)


class PlainGroup(TyperGroup):
    """Commands in their groups, their descriptions not cut."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options, then commands."""
        _write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group of commands under its name."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panels[_panel(command, "Commands")].append((name, _first_paragraph(command)))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def _write_options(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {OPTIONS: []}
    for parameter in parameters:
        if (record := parameter.get_help_record(ctx)) is not None:
            title = "Arguments" if parameter.param_type_name == "argument" else _panel(parameter, OPTIONS)
            panels.setdefault(title, []).append(record)
    for title in sorted(panels, key=lambda title: title != "Arguments"):
        if panels[title]:
            with formatter.section(title):
                formatter.write_dl(panels[title])


def _panel(thing: Any, otherwise: str) -> str:
    named = getattr(thing, "rich_help_panel", None)
    return named if isinstance(named, str) else otherwise


def _first_paragraph(command: Any) -> str:
    return " ".join(cleandoc(command.help or "").partition("\n\n")[0].split())
