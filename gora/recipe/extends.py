"""A recipe that extends another one: what it writes itself comes first, and every value keeps its file and line."""

from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.recipe.builtin import builtin_paths, nearest_builtin
from gora.recipe.document import Document, KeyPath, Problem, read_document

EXTENDS = ("extends",)


def read_extended(path: Path) -> Document:
    """Read a recipe together with the recipe that it extends, if it names one, and so on.

    Sections are merged key by key; any other value, null and lists included, replaces the one that it extends.

    Raises:
        InputError: a file cannot be read, the recipe that one extends does not exist, or a recipe extends itself.
    """
    return _read(path, ())


def _read(path: Path, chain: tuple[Path, ...]) -> Document:
    document = read_document(path)
    chain = (*chain, path.resolve())
    reference = document.values.pop("extends", None)
    if reference is None:
        return document
    base = _find(document, reference)
    if base.resolve() in chain:
        shown = " extends ".join(step.name for step in (*chain, base))
        raise _refusal(document, f"a recipe cannot extend itself: {shown}")
    return _merge(document, _read(base, chain))


def _find(document: Document, reference: Any) -> Path:
    """The file that is meant: one beside the recipe, else a built-in recipe."""
    if not isinstance(reference, str) or not reference or "\0" in reference:
        raise _refusal(document, "expected the name of a built-in recipe, or a file beside this one")
    beside = Path(document.origin).parent / reference
    if beside.is_file():
        return beside
    builtin = builtin_paths().get(reference)
    if builtin is None:
        text = f"{reference!r} is neither a file beside this one nor a built-in recipe. {nearest_builtin(reference)}"
        raise _refusal(document, text)
    return builtin


def _refusal(document: Document, text: str) -> InputError:
    problem = Problem(document.place(EXTENDS), EXTENDS, text)
    return InputError(f"{document.origin}: 1 problem", [str(problem)])


def _merge(document: Document, base: Document) -> Document:
    kept = {key: place for key, place in base.places.items() if not _replaced(document, key)}
    return Document(
        origin=document.origin,
        values=_merged(document.values, base.values),
        places={**kept, **document.places},
        problems=[*document.problems, *base.problems],
        files=[*document.files, *base.files],
    )


def _merged(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(value, base[name]) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in values.items()
    }
    return {**base, **both}


def _replaced(document: Document, key: KeyPath) -> bool:
    """Whether the recipe writes a single value where the one that it extends has a section with this key."""
    around = [key[:length] for length in range(1, len(key))]
    return any(part in document.places and not isinstance(document.value(part), dict) for part in around)
