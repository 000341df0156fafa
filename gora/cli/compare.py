"""gora compare"""

from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import RecipeArgument, SetOption
from gora.runtime.imports import importing


def compare_command(
    recipe: RecipeArgument,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,...", help="Methods to compare; `all` is every one.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,...", help="Seeds of each.")] = "0",
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="SECTION.KEY=V1,V2", help="Values to try of a setting; may be repeated."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            "--tune",
            metavar="SECTION.KEY=V1,V2",
            help="Values of a setting of which each gets its own best, chosen by evaluation loss on one more seed.",
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option("--variants", metavar="FILE", help="Named sets of settings: a file, or a built-in comparison."),
    ] = None,
    overrides: SetOption = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time on each device.")] = 1,
    destination: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Where runs and results go."),
    ] = None,
) -> None:
    """Compare methods, variants and seeds; completed runs are reused."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from gora.errors import InputError

    with importing():
        from gora.stages.compare import compare, destination_of, exit_code

    numbers = seeds.split(",")
    if not all(number.isdigit() for number in numbers):
        raise InputError(f"--seeds {seeds}: whole numbers are expected, as in 0,1,2.")
    outcomes = compare(
        recipe,
        overrides or (),
        methods=methods.split(",") if methods else (),
        seeds=[int(number) for number in numbers],
        vary=vary or (),
        tune=tune,
        variants=variants,
        jobs=jobs,
        destination=destination_of(loaded, overrides or (), destination),
    )
    raise typer.Exit(exit_code(outcomes))
