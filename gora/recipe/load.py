"""A recipe from its file and the overrides of the command line, or everything that is wrong with them at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.recipe import preset
from gora.recipe.builtin import builtin_paths, nearest_builtin
from gora.recipe.document import Document, parse_document, read_document
from gora.recipe.extends import read_extended
from gora.recipe.origins import Origin
from gora.recipe.overrides import override
from gora.recipe.schema import Recipe
from gora.recipe.validation import validated
from gora.recipe.yaml_text import annotated, dump


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that is valid and free of contradictions.

    Args:
        name: the file's name without its ending; of a built-in recipe its own, with dashes for slashes.
        origin: the file.
        recipe: the settings; `output` is always set.
    """

    name: str
    origin: str
    recipe: Recipe


def load_recipe(reference: str, overrides: Sequence[str] = (), *, begin: bool = False) -> LoadedRecipe:
    """Load a recipe.

    Args:
        reference: a YAML file, or the name of a built-in recipe.
        overrides: `section.key=value`, of which a later one wins.
        begin: start over in a folder that holds a run. Otherwise a run that was begun before recipes had a `preset`
            goes on as `paper`.

    Raises:
        InputError: there is no such recipe, or something in it or in the overrides is wrong; all of it is listed.
    """
    path = _find(reference)
    name = reference.replace("/", "-") if builtin_paths().get(reference) == path else path.stem
    return _loaded(read_extended(path), name, overrides, begin=begin)


def parse_recipe(text: str, origin: str, overrides: Sequence[str] = (), *, begin: bool = False) -> LoadedRecipe:
    """Load a recipe that is no file, and extends none.

    Args:
        text: YAML.
        origin: what messages call it; its name without an ending is that of the recipe.
        overrides, begin: see `load_recipe`.

    Raises:
        InputError: something in it or in the overrides is wrong; all of it is listed.
    """
    return _loaded(parse_document(text, origin), Path(origin).stem, overrides, begin=begin)


def _loaded(document: Document, name: str, overrides: Sequence[str], *, begin: bool) -> LoadedRecipe:
    for setting in overrides:
        override(document, setting)
    output = document.value(("output",)) or f"runs/{name}"
    if not begin and isinstance(output, str) and _begun_without_preset(Path(output, "recipe.yaml")):
        document.values.setdefault("preset", "paper")
    preset.fill(document)
    recipe = validated(document).with_origins(preset.origins_of(document))
    if recipe.output is None:
        recipe = recipe.model_copy(update={"output": output})
    return LoadedRecipe(name, document.origin, recipe)


def load_recorded(path: Path) -> Recipe:
    """The recipe that a run has written down; of one that is older than presets, silence means the defaults.

    Raises:
        InputError: see `load_recipe`.
    """
    document = read_document(path)
    document.values.setdefault("preset", "paper")
    return validated(document)


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as YAML, in the order of the schema; loading it gives an equal recipe.

    What is not the schema's default says where it comes from.
    """
    return annotated(dump(recipe.model_dump()), {key: _note(origin) for key, origin in recipe.origins.items()})


def _note(origin: Origin) -> str:
    if origin.source == "recipe":
        return origin.detail
    return f"{origin.source}: {origin.detail}" if origin.detail else origin.source


def _begun_without_preset(recorded: Path) -> bool:
    """Whether a folder holds the recipe of a run that is older than presets."""
    try:
        return recorded.is_file() and "preset" not in read_document(recorded).values
    except (InputError, OSError, ValueError):
        # Whatever is wrong with it is refused by those who need it.
        return False


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema (draft 2020-12), for editors that complete and check YAML.

    No key is required: it may stand in the recipe that is extended.
    """
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "gora recipe"}


def _find(reference: str) -> Path:
    # os.path answers False where pathlib raises: for names that are too long or hold a null byte.
    builtin = builtin_paths().get(reference)
    if builtin and not os.path.isfile(reference):
        # A folder, such as an earlier run of the same name, does not hide a built-in recipe.
        return builtin
    if os.path.isdir(reference):
        inside = Path(reference, "recipe.yaml")
        hint = f"; its recipe is {inside}" if inside.is_file() else ""
        raise InputError(f"{reference!r} is a folder, not a recipe{hint}.")
    if not os.path.exists(reference):
        raise InputError(f"{reference!r} is neither a file nor a built-in recipe. {nearest_builtin(reference)}")
    return Path(reference)
