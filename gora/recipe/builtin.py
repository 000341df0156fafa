"""The recipes and comparisons that ship with gora."""

from difflib import get_close_matches
from pathlib import Path

from gora import assets
from gora.errors import InputError
from gora.recipe.document import read_document

_COMPARISONS = "ablations"


def builtin_recipes() -> list[tuple[str, str]]:
    """Name and description of each built-in recipe, by name."""
    return [(name, _description(path)) for name, path in builtin_paths().items()]


def builtin_comparisons() -> list[tuple[str, str]]:
    """Name and description of each built-in comparison, by name."""
    return [(name, _description(path)) for name, path in comparison_paths().items()]


def builtin_paths() -> dict[str, Path]:
    """The file of each built-in recipe, by name: `quickstart`, `glue/sst2`."""
    return {name: path for name, path in _files().items() if not name.startswith(f"{_COMPARISONS}/")}


def comparison_paths() -> dict[str, Path]:
    """The file of each built-in comparison, by name: `ablations/parts`."""
    return {name: path for name, path in _files().items() if name.startswith(f"{_COMPARISONS}/")}


def read_builtin(name: str) -> str:
    """The text of a built-in recipe or comparison.

    Raises:
        InputError: there is none of that name; the message has the nearest.
    """
    path = _files().get(name)
    if path is None:
        raise InputError(f"{name!r} is not a built-in recipe. {nearest_builtin(name)}")
    return path.read_text(encoding="utf-8")


def nearest_builtin(name: str) -> str:
    """A sentence with the built-in recipes whose names are nearest, or with all of them."""
    names = list(builtin_paths())
    near = get_close_matches(name, names, cutoff=0.5) or get_close_matches(Path(name).stem, names, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Built-in recipes: {', '.join(names)}." if names else "No recipes are built in."


def _files() -> dict[str, Path]:
    root = assets.folder("recipes")
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
    return dict(sorted(files.items()))


def _description(path: Path) -> str:
    try:
        description = read_document(path).values.get("description")
    except InputError:
        # A list is no place to fail; loading the recipe says what is wrong.
        return ""
    return description if isinstance(description, str) else ""
