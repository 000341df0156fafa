"""Arguments and options that several verbs share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a built-in recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
ShowSampleOption = Annotated[
    bool, typer.Option("--show-sample", help="Show one tokenized row, its supervised part marked, and stop.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model run Python code of its own. Read that code first.")
]
