"""Replacing an earlier run: only what gora itself made is ever deleted, and each thing in one step."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from gora import manifest
from gora.errors import InputError
from gora.files import delete, sweep
from gora.runs.failure import REFUSED
from gora.runs.folder import RunFolder
from gora.runs.results import forget_training

# What PEFT, transformers and tokenizers write into the folder of an adapter or a model.
_WRITTEN_BY_LIBRARIES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "README.md",
    "gora.json",
    manifest.NAME,
)


def refuse_links(folder: RunFolder) -> None:
    """Refuse a run folder in which a part of the run is a link: what is replaced would not lie where it seems to.

    Raises:
        InputError: naming the links.
    """
    if links := [path for path in _everything(folder) if path.is_symlink()]:
        raise InputError(
            f"{', '.join(map(str, links))}: a link in a run folder is neither followed nor replaced. Remove it; "
            "the run folder itself may be a link."
        )


def refuse_foreign_files(folder: RunFolder) -> None:
    """Refuse to replace folders of a run into which somebody has put files of their own.

    Raises:
        InputError: naming them.
    """
    foreign = [
        path for made in (folder.adapter, folder.model, folder.merged, folder.rejected) for path in _not_ours(made)
    ]
    if folder.evaluation.is_dir():
        foreign += [path for path in sorted(folder.evaluation.iterdir()) if not _is_answers(path)]
    if foreign:
        some = ", ".join(map(str, foreign[:3])) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            f"{some}: gora did not write this and does not delete it. Move it elsewhere, then try again.", code=REFUSED
        )


def clear_training(folder: RunFolder) -> None:
    """Delete what training left; what says that the run is finished goes first. The plan and the log stay."""
    forget_training(folder)
    for path in (folder.pending_results, folder.adapter, folder.model, folder.rejected):
        delete(path)
    for checkpoint in reversed(folder.all_checkpoints()):
        delete(checkpoint)
    once = (folder.best, folder.samples, folder.page)
    for path in (folder.merged, folder.metrics, folder.initial, folder.decisions, *once, *_answers(folder)):
        delete(path)


def clear_run(folder: RunFolder) -> None:
    """Delete what an earlier run left, its plan included; the log and kept gradients stay."""
    delete(folder.results)
    clear_training(folder)
    delete(folder.plan)
    delete(folder.pass_checkpoint)


def _not_ours(made: Path) -> list[Path]:
    if not made.is_dir():
        return []
    # A command that was killed may have left a model card aside.
    sweep(made)
    listed = manifest.listed(made)
    return [path for path in sorted(made.iterdir()) if not _is_ours(path, listed)]


def _is_ours(path: Path, listed: set[str]) -> bool:
    if path.is_dir():
        return any(name.startswith(f"{path.name}/") for name in listed)
    return path.name in listed or any(fnmatch(path.name, pattern) for pattern in _WRITTEN_BY_LIBRARIES)


def _answers(folder: RunFolder) -> list[Path]:
    return [path for path in sorted(folder.evaluation.glob("*")) if _is_answers(path)]


def _is_answers(path: Path) -> bool:
    """A folder of questions and answers is named after its task and its side."""
    return path.is_dir() and path.name.endswith(("-trained", "-base"))


def _everything(folder: RunFolder) -> Iterable[Path]:
    names = (name for name, value in vars(RunFolder).items() if isinstance(value, property) and name != "trained")
    return [getattr(folder, name) for name in names]
