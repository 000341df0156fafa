"""Files that ship with gora: recipes, a small language model, rows to train it on, questions and prompts of a judge."""

from pathlib import Path

from gora.errors import InputError

BUILTIN = "builtin:"
_HERE = Path(__file__).parent


def folder(kind: str) -> Path:
    """The folder of one kind of shipped file (`recipes`, `configs`, `models`, `data`, `judges`).

    An installed package carries them all; a source checkout keeps `recipes/` and `configs/` at its top.
    """
    installed = _HERE / kind
    return installed if installed.is_dir() else _HERE.parents[1] / kind


def resolve(name: str, kind: str) -> str:
    """Turn `builtin:NAME` into the path of the shipped file or folder; any other name is returned as it is.

    Raises:
        InputError: nothing of that name ships with gora.
    """
    if not name.startswith(BUILTIN):
        return name
    root = folder(kind)
    path = (root / name.removeprefix(BUILTIN)).resolve()
    if not path.is_relative_to(root.resolve()) or not path.exists():
        known = ", ".join(
            f"{BUILTIN}{entry.name}" for entry in sorted(root.iterdir()) if not entry.name.startswith("_")
        )
        raise InputError(f"{name!r} does not ship with gora. Known {kind}: {known}.")
    return str(path)
