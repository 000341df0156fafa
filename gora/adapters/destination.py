"""Where a merged model or an exported adapter may be written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gora import assets, manifest
from gora.errors import InputError

EXPORT_NOTE = "export.json"


@dataclass(frozen=True)
class Result:
    """What a command writes into its folder.

    Attributes:
        told: what the folder is called.
        files: those that it always has.
        others: those that it never has.
    """

    told: str
    files: tuple[str, ...]
    others: tuple[str, ...]


MERGED = Result("a model that gora merged", ("config.json", manifest.NAME), ("adapter_config.json", "plan.safetensors"))
EXPORTED = Result("an adapter that gora exported", (EXPORT_NOTE, manifest.NAME), ("config.json", "plan.safetensors"))


def check_destination(destination: Path, adapter: Path, base: str, overwrite: bool, result: Result = MERGED) -> None:
    """Refuse before anything is loaded what could not be written, or would delete what is not such a result."""
    _refuse_overlap(destination, adapter, Path(assets.resolve(base, "models")))
    if not os.path.lexists(destination):
        nearest = next(parent for parent in destination.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise InputError(f"--output {destination}: {nearest} is a file.")
    elif destination.is_symlink() or not destination.is_dir():
        raise InputError(f"--output {destination} exists and is no folder but a file or a link.")
    elif not _is(result, destination):
        raise InputError(
            f"--output {destination} exists and is not {result.told} ({' and '.join(result.files)}), so it is never "
            "replaced. Give another --output, or delete it yourself."
        )
    elif added := sorted({path.name for path in destination.iterdir()} - manifest.listed(destination)):
        raise InputError(
            f"--output {destination} holds files that gora did not write ({', '.join(added[:3])}), so it is never "
            "replaced. Move them elsewhere, or give another --output."
        )
    elif not overwrite:
        raise InputError(f"{destination} exists. Add --overwrite to replace it, or give another --output.")


def _is(result: Result, folder: Path) -> bool:
    has_files = all((folder / name).is_file() for name in result.files)
    return has_files and not any((folder / name).exists() for name in result.others)


def _refuse_overlap(destination: Path, adapter: Path, base: Path) -> None:
    place = destination.resolve()
    for what, folder in (("adapter", adapter.resolve()), ("base model", base.resolve())):
        if folder.is_dir() and (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise InputError(f"--output {destination} is, contains or lies inside the folder of the {what}, {folder}.")
    if Path.cwd().is_relative_to(place):
        raise InputError(f"--output {destination} is the current folder or contains it.")
