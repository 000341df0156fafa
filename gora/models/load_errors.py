"""What a failure to load a model or a tokenizer means to the user."""

from __future__ import annotations

from pathlib import Path

from gora.disk import FULL, advice_for, is_full
from gora.errors import GoraError, InputError


def explained(name: str, path: str, error: Exception) -> GoraError:
    """The error to raise for one of transformers.

    Args:
        name: what the user calls the model or tokenizer.
        path: its folder or hub id.
        error: what was raised while it was read.
    """
    if is_full(error):
        # Of the hub's cache: nothing else is written while a model is loaded.
        return GoraError(advice_for(error) or str(error), code=FULL)
    if isinstance(error, KeyError):
        # Of these, Python writes the key alone.
        error = ValueError(f"it names {error}, which this version of transformers does not know")
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    # Some messages begin with the heading of a list.
    first_line = " ".join(lines) if lines[0].endswith(":") else lines[0]
    if "trust_remote_code" in str(error):
        return InputError(
            f"model {name!r} brings Python code of its own, which gora does not run unless told to. "
            "Read that code, then add --trust-remote-code to the command."
        )
    if Path(path).is_dir():
        return InputError(f"model {name!r}: the folder cannot be loaded: {first_line}")
    return InputError(
        f"model {name!r} is neither a folder here nor a model that the hub answers for: {first_line}",
        ["Check the name; log in with `hf auth login` for a gated model; offline, give a downloaded folder."],
    )
