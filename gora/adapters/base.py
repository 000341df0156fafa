"""Whether a base model is the one that an adapter was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gora.adapters.load import read_base_note
from gora.errors import InputError
from gora.models.hub_names import split_revision
from gora.models.source import Source, find_model
from gora.models.weight_files import stored_weights
from gora.recipe.schema import ModelSection
from gora.runtime.world import World


def base_named(config: Any, given: str | None) -> tuple[str, str | None]:
    """Name and revision of the base: what the user has given, else what PEFT's configuration says."""
    if given in (None, config.base_model_name_or_path):
        return config.base_model_name_or_path, config.revision
    return split_revision(str(given))


def find_base(settings: ModelSection, adapter: Path, *, given: bool, **options: Any) -> Source:
    """As `find_model`; where the user has not named the base, the refusal says who has."""
    try:
        return find_model(settings, **options)
    except InputError as error:
        if given:
            raise
        advice = f"The adapter {adapter} names it as its base; give another name of it with --base."
        raise InputError(error.headline, [*error.problems, advice], code=error.code) from None


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
