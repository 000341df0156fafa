"""Named variants of a recipe: a file that gives each a label and the settings in which it differs."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.recipe.builtin import comparison_paths
from gora.recipe.document import Document, KeyPath, Problem, Unreadable, dotted, read_document

_KEYS = ("description", "share_gradients", "variants")


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        label: its name in tables.
        settings: `section.key=value`, as `--set` takes it.
        place: file and line.
    """

    label: str
    settings: tuple[str, ...]
    place: str


@dataclass(frozen=True)
class Variants:
    """A file of variants.

    Attributes:
        variants: in the order of the file.
        share_gradients: whether variants that differ in nothing that gradients depend on share one gradient pass.
    """

    variants: tuple[Variant, ...]
    share_gradients: bool = False


def read_variants(reference: str) -> Variants:
    """Read a file of variants.

    Args:
        reference: a YAML file, or the name of a built-in comparison.

    Raises:
        InputError: there is no such file, or something in it is wrong; all of it is listed. Whether the settings make
            a valid recipe shows when one is loaded with them.
    """
    document = read_document(_find(reference))
    problems = [*document.problems, *_problems(document)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{document.origin}: {count}", [str(problem) for problem in problems])
    variants = (_variant(document, label) for label in document.values["variants"])
    return Variants(tuple(variants), document.values.get("share_gradients", False))


def _find(reference: str) -> Path:
    builtin = comparison_paths().get(reference)
    if os.path.isfile(reference) or builtin is None:
        path = Path(reference)
        if not os.path.isfile(reference):
            known = ", ".join(comparison_paths())
            raise InputError(f"--variants: {reference!r} is neither a file nor a built-in comparison ({known}).")
        return path
    return builtin


def _problems(document: Document) -> Iterator[Problem]:
    for name in document.values:
        if name not in _KEYS:
            yield _problem(document, (name,), f"unknown key; known here: {', '.join(_KEYS)}")
    if not isinstance(document.values.get("share_gradients", False), bool):
        yield _problem(document, ("share_gradients",), "expected true or false")
    variants = document.values.get("variants")
    if not isinstance(variants, dict) or not variants:
        yield _problem(document, ("variants",), "expected labels, each with the settings of one variant")
        return
    for label, settings in variants.items():
        key = ("variants", label)
        if not isinstance(settings, dict):
            text = "expected settings, such as {gora.gamma: 0.05}; {} is the recipe as it is"
            yield _problem(document, key, text)
            continue
        for name, value in settings.items():
            if isinstance(value, dict | Unreadable):
                text = "expected one value; write a setting with its section, as in gora.gamma: 0.05"
                yield _problem(document, (*key, name), text)


def _problem(document: Document, key: KeyPath, text: str) -> Problem:
    return Problem(document.place(key), key, text)


def _variant(document: Document, label: str) -> Variant:
    settings: dict[str, Any] = document.values["variants"][label]
    key = ("variants", label)
    # JSON is YAML, so that any value can be given on as text.
    texts = tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
    return Variant(label, texts, f"{document.place(key)}: {dotted(key)}")
