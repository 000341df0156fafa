"""gora init"""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gora.cli.options import SetOption, TrustOption
from gora.runtime.imports import importing


def init_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder of the model.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, pattern, folder or hub id of the rows.")],
    destination: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The new recipe; by default NAME-OF-THE-ROWS.yaml.")
    ] = None,
    overrides: SetOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a recipe for a model and rows, and check it."""
    with importing():
        from gora.report.check import check_page
        from gora.runtime.console import output
        from gora.stages.init import write_proposal

    made = write_proposal(
        model, data, overrides or (), destination=destination, overwrite=overwrite, trust_remote_code=trust_remote_code
    )
    typer.echo(made.text)
    output.say(check_page(made.checked.problems, made.checked.notes, made.checked.facts))
    typer.echo(f"recipe    {made.path}\nnext      gora run {quote(str(made.path))}")
    raise typer.Exit(made.checked.exit_code)
