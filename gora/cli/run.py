"""gora run"""

from typing import Annotated

import typer

from gora.cli.options import OverwriteOption, RecipeArgument, ResumeOption, SetOption, TrustOption


def run_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the merged model.")] = False,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Precompute, train and evaluate."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from gora.stages.run import run

    run(loaded.recipe, merge_too=merge, resume=resume, overwrite=overwrite, trust_remote_code=trust_remote_code)
