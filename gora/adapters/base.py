"""Whether a base model is the one that an adapter was trained on."""

from __future__ import annotations

from pathlib import Path

from gora.adapters.load import read_base_note
from gora.errors import InputError
from gora.models.load import Source
from gora.models.weight_files import stored_weights
from gora.runtime.world import World


def check_base(adapter: Path, source: Source, world: World) -> None:
    """Refuse a base whose files hold other weights than in training; all processes have to ask together.

    The adapter of another tool, and one trained before gora noted them, fits any base.

    Raises:
        InputError: the weights differ, saying which, or the base's files or the adapter's note cannot be read.
    """
    note = read_base_note(adapter)
    if note is None or note.weights is None:
        return
    if changed := stored_weights(source, world).changes_since(note.weights):
        raise other_base(source.path, adapter, changed)


def other_base(name: str, adapter: Path, changed: str, advice: str = "Restore it, or train again.") -> InputError:
    """The refusal of a base that an adapter was not trained on."""
    return InputError(
        f"model {name!r} is not the base that the adapter was trained on ({adapter}): its weights differ. {advice}",
        [changed] if changed else [],
    )
