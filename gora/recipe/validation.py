"""From a document to a recipe that is valid and free of contradictions, or to all that is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from gora.errors import InputError
from gora.recipe import preset
from gora.recipe.document import Document, KeyPath, Problem, Unreadable
from gora.recipe.messages import ITEM, explain, key_path, known_key, known_keys
from gora.recipe.rules import Contradiction, contradictions
from gora.recipe.schema import Recipe


def validated(document: Document) -> Recipe:
    """The recipe that a document holds.

    Raises:
        InputError: something in it is wrong; all of it is listed, by line.
    """
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
                    text, meant = _of_no_list(document, path) or explain(path, document.value(path), errors)
                    problems.append(Problem(document.place(path), path, text, meant))
                told.append(path)
                _mend(document, path)


def _of_no_list(document: Document, path: KeyPath) -> tuple[str, tuple[KeyPath, ...]] | None:
    """What to say of a number where there is no list but could be one; None of other keys."""
    if not path[-1].isdecimal() or known_key(path) is None or isinstance(document.value(path[:-1]), list):
        return None
    section = ".".join(path[:-1])
    return f"{section} is not a list, and only a list has numbered sections; leave the number out: {section}.KEY", ()


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
    # A number is a key of lists alone.
    key = None if path[-1].isdecimal() else known_key(path)
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
