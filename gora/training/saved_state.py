"""The Trainer's files in a checkpoint, which it takes as they are: what is wrong with them is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from gora.errors import GoraError, InputError
from gora.files import read_json
from gora.runs.folder import step_of


def check_state(checkpoint: Path) -> None:
    """Refuse a checkpoint whose state is not one of the Trainer's, or is of another step.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    path = checkpoint / TRAINER_STATE_NAME
    try:
        document = read_json(path)
        state = TrainerState(**document)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from None
    defaults = vars(TrainerState())
    if wrong := [name for name, value in document.items() if not _is_like(value, defaults[name])]:
        raise _unusable(path, f"{', '.join(wrong)}: of another type than it should be")
    if state.global_step != step_of(checkpoint):
        raise _unusable(path, f"global_step: {state.global_step}, and the folder is of step {step_of(checkpoint)}")


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """What cannot be read of a checkpoint is the input's fault, whichever library notices it."""
    try:
        yield
    except (GoraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a file of somebody else's making can be wrong in any way
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{checkpoint} cannot be loaded: {type(error).__name__}: {lines[0]} Start training over with --overwrite."
        ) from None


def _is_like(value: Any, default: Any) -> bool:
    if default is None or value is None:
        return True
    if isinstance(default, int | float) and not isinstance(default, bool):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type(default))


def _unusable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be used: {reason}. Start training over with --overwrite.")
