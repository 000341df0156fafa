"""Where a merged model may be written."""

from __future__ import annotations

import os
from pathlib import Path

from gora import assets
from gora.errors import InputError


def check_destination(destination: Path, adapter: Path, base: str, overwrite: bool) -> None:
    """Refuse before anything is loaded what could not be written, or would delete what is not a merged model."""
    _refuse_overlap(destination, adapter, Path(assets.resolve(base, "models")))
    if not os.path.lexists(destination):
        nearest = next(parent for parent in destination.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise InputError(f"--output {destination}: {nearest} is a file.")
    elif destination.is_symlink() or not destination.is_dir():
        raise InputError(f"--output {destination} exists and is no folder but a file or a link.")
    elif not _is_model(destination):
        raise InputError(
            f"--output {destination} exists and is no model folder (config.json, but neither adapter nor plan), "
            "so it is never replaced. Give another --output."
        )
    elif not overwrite:
        raise InputError(f"{destination} exists. Add --overwrite to replace it, or give another --output.")


def _is_model(folder: Path) -> bool:
    others = ("adapter_config.json", "plan.safetensors")
    return (folder / "config.json").is_file() and not any((folder / name).exists() for name in others)


def _refuse_overlap(destination: Path, adapter: Path, base: Path) -> None:
    place = destination.resolve()
    for what, folder in (("adapter", adapter.resolve()), ("base model", base.resolve())):
        if folder.is_dir() and (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise InputError(f"--output {destination} is, contains or lies inside the folder of the {what}, {folder}.")
    if Path.cwd().is_relative_to(place):
        raise InputError(f"--output {destination} is the current folder or contains it.")
