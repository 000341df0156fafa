"""Where a merged model may be written."""

from __future__ import annotations

import os
from pathlib import Path

from gora import assets, manifest
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
    elif not _is_merged(destination):
        raise InputError(
            f"--output {destination} exists and is not a model that gora merged (config.json and {manifest.NAME}), "
            "so it is never replaced. Give another --output, or delete it yourself."
        )
    elif added := sorted({path.name for path in destination.iterdir()} - manifest.listed(destination)):
        raise InputError(
            f"--output {destination} holds files that gora did not write ({', '.join(added[:3])}), so it is never "
            "replaced. Move them elsewhere, or give another --output."
        )
    elif not overwrite:
        raise InputError(f"{destination} exists. Add --overwrite to replace it, or give another --output.")


def _is_merged(folder: Path) -> bool:
    others = ("adapter_config.json", "plan.safetensors")
    is_model = (folder / "config.json").is_file() and not any((folder / name).exists() for name in others)
    return is_model and manifest.is_sealed(folder)


def _refuse_overlap(destination: Path, adapter: Path, base: Path) -> None:
    place = destination.resolve()
    for what, folder in (("adapter", adapter.resolve()), ("base model", base.resolve())):
        if folder.is_dir() and (place.is_relative_to(folder) or folder.is_relative_to(place)):
            raise InputError(f"--output {destination} is, contains or lies inside the folder of the {what}, {folder}.")
    if Path.cwd().is_relative_to(place):
        raise InputError(f"--output {destination} is the current folder or contains it.")
