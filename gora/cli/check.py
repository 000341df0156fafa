"""gora check"""

from typing import Annotated

import typer

from gora.cli.options import RecipeArgument, SetOption, TrustOption
from gora.runtime.imports import importing


def check_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes of the run; by default one a visible GPU.")
    ] = None,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="Also compare the GPUs here, and measure how fast they talk.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Say what a recipe needs here and what would stop it."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    with importing():
        from gora.report.check import check_page
        from gora.runtime.console import output
        from gora.stages.check import check

    found = check(loaded.recipe, processes=processes, gpus=gpus, trust_remote_code=trust_remote_code)
    if as_json:
        typer.echo(found.as_json())
    else:
        output.say(check_page(found.problems, found.notes, found.facts))
    raise typer.Exit(found.exit_code)
