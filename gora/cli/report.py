"""gora report"""

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    destination: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; by default report.html in the run folder."),
    ] = None,
) -> None:
    """Write a run as one page for a browser."""
    from gora.stages.report import report

    typer.echo(f"page      {report(run, destination)}")
