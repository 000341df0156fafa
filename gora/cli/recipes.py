"""gora recipes"""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gora.cli.help import PlainCommand, PlainGroup

recipes_app = typer.Typer(
    cls=PlainGroup, help="List, show and copy the built-in recipes.", invoke_without_command=True, no_args_is_help=False
)


@recipes_app.callback()
def list_command(context: typer.Context) -> None:
    """List the built-in recipes."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from gora.recipe.builtin import builtin_comparisons, builtin_recipes
    from gora.runtime.console import output

    for title, found in (("recipe", builtin_recipes()), ("comparison", builtin_comparisons())):
        table = Table(title, "what it does")
        for name, description in found:
            table.add_row(name, description)
        output.say(table)
    output.say("gora recipes show NAME prints one; gora recipes copy NAME FILE makes it yours.")
    output.say("A comparison goes with any recipe: gora compare RECIPE --variants COMPARISON.")


@recipes_app.command("show", cls=PlainCommand)
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    complete: Annotated[
        bool, typer.Option("--complete", help="Every setting, those that it extends and defaults included.")
    ] = False,
) -> None:
    """Print a built-in recipe or comparison as it stands, with its comments."""
    from gora.recipe import dump_recipe, load_recipe
    from gora.recipe.builtin import read_builtin

    typer.echo(dump_recipe(load_recipe(name).recipe) if complete else read_builtin(name), nl=False)


@recipes_app.command("copy", cls=PlainCommand)
def copy_command(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Copy a built-in recipe or comparison to a file of your own."""
    from gora.errors import InputError
    from gora.files import write_text
    from gora.recipe.builtin import comparison_paths, read_builtin

    text = read_builtin(name)
    if file.is_dir():
        raise InputError(f"{file} is a folder. Give the name of the new file, such as {file / f'{name}.yaml'}.")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists. Add --overwrite to replace it.")
    write_text(file, text)
    if name in comparison_paths():
        typer.echo(f"variants  {file}\nnext      gora compare RECIPE --variants {quote(str(file))}")
    else:
        typer.echo(f"recipe    {file}\nnext      gora run {quote(str(file))}")


@recipes_app.command("schema", cls=PlainCommand)
def schema_command() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    from gora.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
