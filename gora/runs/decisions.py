"""decisions.json: what gora decided for a run, and on what grounds."""

from __future__ import annotations

from pydantic import ValidationError

from gora.errors import InputError
from gora.files import read_json, write_json
from gora.plan import Decision
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder

RATE = "train.learning_rate"


def read_decisions(folder: RunFolder) -> dict[str, Decision]:
    """Decisions by setting; empty where there are none.

    Raises:
        InputError: the file cannot be read.
    """
    path = folder.decisions
    if not path.exists():
        return {}
    try:
        return {str(setting): Decision.model_validate(value) for setting, value in read_json(path).items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        raise InputError(f"{path} is damaged. Delete it, and what it decided is decided again.") from None


def write_decision(folder: RunFolder, setting: str, decision: Decision) -> None:
    """Add a decision, or put it in the place of an earlier one."""
    decisions = {**read_decisions(folder), setting: decision}
    write_json(folder.decisions, {name: each.model_dump(mode="json") for name, each in decisions.items()})


def as_decided(context: RunContext) -> RunContext:
    """A run that is resumed trains with the rate that was decided when it began."""
    if context.mode != "resume" or context.recipe.train.learning_rate != "auto":
        return context
    decision = context.world.from_main(lambda: read_decisions(context.folder)).get(RATE)
    return context if decision is None else context.with_settings({RATE: decision.value})
