"""Whether the adapter that a recipe will make can be merged: asked before anything is loaded."""

from __future__ import annotations

from gora.errors import InputError
from gora.methods import METHODS
from gora.models.quantization import stored_quantization
from gora.models.source import Source
from gora.models.streamed import changes_weights, streamable_model
from gora.models.whole import not_loaded
from gora.recipe.schema import Recipe


def refuse_unmergeable(recipe: Recipe, source: Source) -> None:
    """Refuse `--merge` where the run's adapter could not be merged at its end.

    Raises:
        InputError: with the reason, and what to do instead.
    """
    method = METHODS[recipe.adapter.method]
    if method.saved_as == "model":
        raise InputError(f"--merge: {method.title} leaves a whole model, there is no adapter to merge.")
    if not method.merges:
        raise InputError(
            f"--merge: an adapter of {method.title} cannot be folded into weights. Leave --merge out, or give another "
            "adapter.method."
        )
    if (stored := stored_quantization(source.config)) is not None:
        raise InputError(f"--merge: {unmergeable_base(recipe.model.name, stored)}")
    if changes_weights(source):
        raise InputError(f"--merge: {unsteady_merge(recipe.model.name)}")
    if streamable_model(source) is None and (lost := not_loaded(source)):
        raise InputError(f"--merge: {incomplete_merge(recipe.model.name, lost)}")


def incomplete_merge(name: str, lost: list[str]) -> str:
    """Why a checkpoint that holds more than its language model is not merged."""
    return (
        f"the checkpoint {name!r} also holds {', '.join(lost)}, which a merged model would lack. Serve the adapter "
        "beside the base instead of merging."
    )


def unsteady_merge(name: str) -> str:
    """Why a model that rescales itself is not merged."""
    return (
        f"{name!r} changes its own weights while it runs, so that those in memory are not those to store. Serve the "
        "adapter beside the base instead of merging."
    )


def unmergeable_base(name: str, stored: str) -> str:
    """What to do where the base of an adapter is stored in few bits."""
    return (
        f"the base {name!r} is stored in {stored}, into which no adapter can be folded. Train without --merge, then "
        "merge into the model in whole weights: gora merge ADAPTER --base FULL_MODEL --output FOLDER."
    )
