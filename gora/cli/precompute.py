"""gora precompute"""

from gora.cli.options import OverwriteOption, RecipeArgument, SetOption, ShowSampleOption, TrustOption


def precompute_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    show_sample: ShowSampleOption = False,
    overwrite: OverwriteOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Turn gradients of your data into ranks and initial values: writes the plan."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if show_sample:
        from gora.stages.sample import show_sample as show

        show(loaded.recipe, trust_remote_code=trust_remote_code)
        return
    from gora.stages.precompute import precompute

    precompute(loaded.recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)
