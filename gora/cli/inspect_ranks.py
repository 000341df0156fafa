"""gora inspect-ranks"""

import json
from pathlib import Path
from typing import Annotated

import typer


def inspect_ranks_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file, or a run folder that holds one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture: FILE.png or FILE.svg.")
    ] = None,
) -> None:
    """Show the rank of every layer."""
    from gora.plan import read_plan
    from gora.report.ranks import rank_data, rank_report
    from gora.runtime.console import output

    document = read_plan(plan / "plan.safetensors" if plan.is_dir() else plan)
    if plot is not None:
        from gora.report.plot import plot_ranks

        plot_ranks(document, plot)
    if as_json:
        typer.echo(json.dumps(rank_data(document), indent=2))
    else:
        output.say(rank_report(document))
    if plot is not None:
        typer.echo(f"picture   {plot}", err=as_json)
