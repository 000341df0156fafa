"""gora inspect-ranks"""

from pathlib import Path
from typing import Annotated

import typer


def inspect_ranks_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file, or a run folder that holds one.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A second plan, to compare with the first rank by rank.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture: FILE.png or FILE.svg.")
    ] = None,
) -> None:
    """Show what a plan decided and the rank of every layer, or compare two plans."""
    from gora.report.plan_views import show_plan, show_two_plans

    if other is not None:
        show_two_plans(plan, other, as_json=as_json, plot=plot)
    else:
        show_plan(plan, as_json=as_json, plot=plot)
