"""A recipe from its file and the overrides of the command line, or everything that is wrong with them at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gora.errors import InputError
from gora.recipe import preset
from gora.recipe.builtin import builtin_paths, nearest_builtin
from gora.recipe.document import (
    Builder,
    Document,
    KeyPath,
    Place,
    Problem,
    Unreadable,
    inner_value,
    parse_document,
    read_document,
)
from gora.recipe.extends import EXTENDS, read_extended
from gora.recipe.messages import ITEM, explain, key_path, known_key, known_keys
from gora.recipe.origins import Origin
from gora.recipe.rules import Contradiction, contradictions
from gora.recipe.schema import Recipe
from gora.recipe.yaml_text import NotYamlError, annotated, compose, dump


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
        _override(document, setting)
    output = document.value(("output",)) or f"runs/{name}"
    if not begin and isinstance(output, str) and _begun_without_preset(Path(output, "recipe.yaml")):
        document.values.setdefault("preset", "paper")
    preset.fill(document)
    recipe = _check(document).with_origins(preset.origins_of(document))
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
    return _check(document)


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


def _override(document: Document, setting: str) -> None:
    """Change one value of the document; what is wrong goes to its problems."""
    place = Place(f"--set {_one_line(setting)}")
    name, equals, text = setting.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        document.problems.append(Problem(place, (), "expected section.key=value, as in train.epochs=3"))
        return
    if key == EXTENDS:
        text = "can stand in a recipe only; give the recipe to be extended as RECIPE"
        document.problems.append(Problem(place, key, text))
        return
    section = _reach(document, key[:-1], place)
    if section is None:
        return
    for inner in [known for known in document.places if known[: len(key)] == key]:
        del document.places[inner]
    document.places[key] = place
    section[key[-1]] = Unreadable()
    try:
        node = compose(text)
        section[key[-1]] = node and Builder(document, place.origin, numbered=False).value(node, key)
    except NotYamlError as error:
        document.problems.append(Problem(place, key, error.text))


def _one_line(setting: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in setting)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _reach(document: Document, key: KeyPath, place: Place) -> dict[str, Any] | None:
    """The mapping that an override changes; one that is absent or null is made."""
    section: Any = document.values
    for length in range(1, len(key) + 1):
        name, path = key[length - 1], key[:length]
        if isinstance(section, dict) and section.get(name) is None:
            section[name] = {}
            document.places[path] = place
        found = inner_value(section, name)
        # What is inside a list is reached by its number.
        if not isinstance(found, dict) and not (isinstance(found, list) and length < len(key)):
            text = f"has no keys to set: it is {_what_it_is(section, found)} ({document.place(path)})"
            document.problems.append(Problem(place, path, text))
            return None
        section = found
    return section  # type: ignore[no-any-return]


def _what_it_is(around: Any, value: Any) -> str:
    if isinstance(around, list):
        return f"not one of the {len(around)} sections here, which are numbered from 0"
    return "a list, whose sections are numbered from 0" if isinstance(value, list) else "a single value"


def _check(document: Document) -> Recipe:
    recipe, wrong = _validate(document)
    while any([preset.take_back(document, found.keys) for found in contradictions(recipe)]):
        # What was written wins over the preset.
        recipe, more = _validate(document)
        wrong += more
    problems = [*document.problems, *wrong]
    unsure = [key for problem in problems for key in (problem.key, *problem.meant) if key]
    for found in contradictions(recipe):
        keys = [tuple(key.split(".")) for key in found.keys]
        if not any(_overlap(key, other) for key in keys for other in unsure):
            problems.append(_locate(document, found))
    if problems:
        # By line, what is extended before what extends it; what the command line says comes last.
        problems.sort(key=lambda problem: (-document.distance(problem.place), problem.place.line or 0))
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{document.origin}: {count}", [str(problem) for problem in problems])
    return recipe


def _validate(document: Document) -> tuple[Recipe, list[Problem]]:
    """Validate until nothing is wrong any more, mending what was; the recipe is as written where nothing was."""
    _fill_sections(document)
    told: list[KeyPath] = []
    problems: list[Problem] = []
    while True:
        try:
            return Recipe.model_validate(document.values), problems
        except ValidationError as error:
            for path, errors in _by_key(error).items():
                if path in told:
                    raise  # mending did not help: a fault in the code, better seen than repeated for ever
                if not any(_overlap(path, other) for other in told) and not _is_reported(errors):
                    text, meant = explain(path, document.value(path), errors)
                    problems.append(Problem(document.place(path), path, text, meant))
                told.append(path)
                _mend(document, path)


def _fill_sections(document: Document) -> None:
    """A section that is absent or has nothing under it counts as empty, so that what it must hold is what is missed."""
    for path, key in known_keys().items():
        if ITEM in path:
            continue
        parent = document.value(path[:-1])
        if key.section and not key.nullable and isinstance(parent, dict) and parent.get(path[-1]) is None:
            parent[path[-1]] = {}


def _by_key(error: ValidationError) -> dict[KeyPath, list[Any]]:
    """Pydantic's details by the key that they are about: each branch of a union has one of its own."""
    by_key: dict[KeyPath, list[Any]] = {}
    for detail in error.errors(include_url=False, include_context=False):
        by_key.setdefault(key_path(detail["loc"]), []).append(detail)
    return by_key


def _is_reported(errors: Sequence[Any]) -> bool:
    return any(isinstance(detail["input"], Unreadable) for detail in errors)


def _mend(document: Document, path: KeyPath) -> None:
    """Take out a wrong value; what is required gets the emptiest value of its type, which is text or a section."""
    section = document.value(path[:-1])
    if isinstance(section, list):
        section[int(path[-1])] = {}
        return
    key = known_key(path)
    if key and (key.required or key.section) and not key.nullable:
        section[path[-1]] = {} if key.section else ""
    else:
        section.pop(path[-1], None)


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """One key is the other, or holds it."""
    return all(left == right for left, right in zip(one, other, strict=False))


def _locate(document: Document, found: Contradiction) -> Problem:
    """Put a contradiction to the first of its keys that was written, an override before the file."""
    keys = [tuple(key.split(".")) for key in found.keys]
    written = [key for key in keys if key in document.places] or keys
    key = min(written, key=lambda key: document.distance(document.place(key)))
    return Problem(document.place(key), key, found.text)
