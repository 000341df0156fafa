"""decisions.json: what gora decided for a run, and on what grounds."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from gora.errors import InputError
from gora.files import read_json, write_json, write_text
from gora.plan import Decision
from gora.recipe import dump_recipe
from gora.recipe.derived import by_key
from gora.recipe.origins import Origin
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder

RATE = "train.learning_rate"
ASKED = object()
"""In the place of a value that the recipe had left open."""


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


def record_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Write the recipe of a run, and what others than it decided; what was measured keeps its curve."""
    write_text(folder.recipe, dump_recipe(recipe))
    values, earlier = by_key(recipe), read_decisions(folder)
    decisions = {}
    for setting, origin in recipe.origins.items():
        if origin.source not in ("default", "recipe"):
            decision = Decision(value=values[setting], origin=origin.source, why=origin.detail)
            before = earlier.get(setting)
            same = before is not None and (before.value, before.origin) == (decision.value, decision.origin)
            decisions[setting] = before if same and before is not None else decision
    if decisions:
        write_json(folder.decisions, {name: each.model_dump(mode="json") for name, each in decisions.items()})


def write_decision(folder: RunFolder, setting: str, decision: Decision) -> None:
    """Add a decision, or put it in the place of an earlier one."""
    decisions = {**read_decisions(folder), setting: decision}
    write_json(folder.decisions, {name: each.model_dump(mode="json") for name, each in decisions.items()})


def as_asked(folder: RunFolder, begun: Recipe) -> dict[str, Any]:
    """The settings of a run as its recipe had them: `auto`, or nothing, where gora has put a value there."""
    values = by_key(begun)
    for setting, decision in read_decisions(folder).items():
        if decision.origin in ("computed", "measured"):
            values[setting] = ASKED
    return values


def as_decided(context: RunContext) -> RunContext:
    """A run that is resumed trains with the rate that was decided when it began."""
    if context.mode != "resume" or context.recipe.train.learning_rate != "auto":
        return context
    told = context.world.from_main(lambda: _known_rate(context.folder))
    return (
        context if told is None else context.with_settings({RATE: told["rate"]}, origins={RATE: Origin(**told["from"])})
    )


def _known_rate(folder: RunFolder) -> dict[str, Any] | None:
    decision = read_decisions(folder).get(RATE)
    if decision is None:
        return None
    return {"rate": decision.value, "from": {"source": decision.origin, "detail": decision.why}}
