"""The recipes that ship with gora."""

from difflib import get_close_matches
from pathlib import Path

from gora import assets
from gora.errors import InputError
from gora.recipe.document import read_document


def builtin_recipes() -> list[tuple[str, str]]:
    """Name and description of each built-in recipe, by name."""
    return [(name, _description(path)) for name, path in builtin_paths().items()]


def builtin_paths() -> dict[str, Path]:
    """The file of each built-in recipe, by name."""
    return {path.stem: path for path in sorted(assets.folder("recipes").glob("*.yaml"))}


def read_builtin(name: str) -> str:
    """The text of a built-in recipe.

    Raises:
        InputError: there is no recipe of that name; the message has the nearest.
    """
    path = builtin_paths().get(name)
    if path is None:
        raise InputError(f"{name!r} is not a built-in recipe. {nearest_builtin(name)}")
    return path.read_text(encoding="utf-8")


def nearest_builtin(name: str) -> str:
    """A sentence with the built-in recipes whose names are nearest, or with all of them."""
    names = list(builtin_paths())
    near = get_close_matches(Path(name).stem, names, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Built-in recipes: {', '.join(names)}." if names else "No recipes are built in."


def _description(path: Path) -> str:
    try:
        description = read_document(path).values.get("description")
    except InputError:
        # A list is no place to fail; loading the recipe says what is wrong.
        return ""
    return description if isinstance(description, str) else ""
