"""What gora offers to Python programs: a recipe's stages, and the gradient pass for anyone's own training loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gora.errors import GoraError, InputError, Interrupted
from gora.gradients.mean import MeanGradients, mean_gradients
from gora.methods.gora import set_initial_values
from gora.planning.own_loop import plan_adapter
from gora.recipe import Recipe
from gora.recipe import load_recipe as _load_recipe
from gora.stages.check import check
from gora.stages.export import export
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train

__all__ = [
    "GoraError",
    "InputError",
    "Interrupted",
    "MeanGradients",
    "Recipe",
    "check",
    "export",
    "load_recipe",
    "mean_gradients",
    "merge",
    "plan_adapter",
    "precompute",
    "run",
    "set_initial_values",
    "train",
]


def load_recipe(reference: str, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe; its `output` is always set.

    Args:
        reference: a YAML file, or the name of a built-in recipe.
        settings: values by dotted key, such as `{"train.learning_rate": 1e-4}`, which replace those of the recipe.

    Raises:
        InputError: there is no such recipe, or something in it or in the settings is wrong; all of it is listed.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]
    return _load_recipe(reference, overrides).recipe
