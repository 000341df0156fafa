"""Names of the hub, with or without a revision, and what is said when the hub does not give what was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from gora import assets


def split_revision(name: str) -> tuple[str, str | None]:
    """`ORG/NAME@REVISION` in its two parts; whatever is a path here, or has no revision, stays as it is."""
    repository, at, revision = name.rpartition("@")
    if not at or not repository or not revision or os.path.exists(name) or name.startswith(assets.BUILTIN):
        return name, None
    return (repository, revision) if is_hub_name(repository) else (name, None)


def is_hub_name(name: str) -> bool:
    """Whether a name can be one of the hub (`NAME` or `ORG/NAME`) and is no file or folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~")) and not Path(name).exists()


def hub_reason(error: BaseException) -> str:
    """Why the hub has not given something, and what to do, in a sentence or two."""
    if isinstance(error, GatedRepoError):
        return "It is gated: ask for access on its page, then log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return "The hub knows no such repository. Check the name; log in with `hf auth login` for a private one."
    if isinstance(error, RevisionNotFoundError):
        return "The repository has no such branch, tag or commit."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "It is not in the hub's cache, and the hub was not asked (HF_HUB_OFFLINE) or does not answer."
    if isinstance(error, EntryNotFoundError):
        return "The repository has no such file."
    return f"The hub does not give it: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
