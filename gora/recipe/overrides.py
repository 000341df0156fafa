"""`--set section.key=value`: change one value of a recipe's document."""

from __future__ import annotations

from typing import Any

from gora.recipe.document import Builder, Document, KeyPath, Place, Problem, Unreadable, inner_value
from gora.recipe.extends import EXTENDS
from gora.recipe.yaml_text import NotYamlError, compose


def override(document: Document, setting: str) -> None:
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
