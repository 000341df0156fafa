"""The recipe of a run: its schema, and how it is read, checked and written."""

from gora.recipe.load import LoadedRecipe, dump_recipe, json_schema, load_recipe, load_recorded
from gora.recipe.rules import accumulation_steps
from gora.recipe.schema import Recipe

__all__ = ["LoadedRecipe", "Recipe", "accumulation_steps", "dump_recipe", "json_schema", "load_recipe", "load_recorded"]
