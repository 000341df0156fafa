"""`preset: auto`: what a recipe's silence means, setting by setting, with the reason.

A value stands here only if it was measured to be better than the published one, or says the same with less to know of
the machine; `docs/preset.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.recipe.document import Document, KeyPath, Place
from gora.recipe.method_facts import METHOD_NAMES, facts_of
from gora.recipe.origins import Origin

PRESET = Place("preset: auto")
"""The place of what no file and no option says."""
_IMPLIED = Place("implied by adapter.targets or adapter.parameters")
_SHARES_OUT = ("gora.allocation", "gora.importance", "gora.temperature", "gora.rank_min", "gora.rank_max")

Written = Callable[[str], Any]
"""What the recipe itself says under a dotted key; None where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the preset says under one key.

    Attributes:
        key: dotted.
        value: as a recipe would have it.
        why: in a few words.
        applies: whether it goes with what the recipe says elsewhere.
    """

    key: str
    value: Any
    why: str
    applies: Callable[[Written], bool] = lambda written: True


def _makes_plan(written: Written) -> bool:
    method = written("adapter.method") or "gora"
    return method in METHOD_NAMES and facts_of(method).needs_plan


def _leaves_the_rank_open(written: Written) -> bool:
    """Bounds are those of a reference rank that the writer had in mind; whole weights have none."""
    if written("adapter.method") == "full" or written("adapter.experts"):
        return False
    return all(written(key) is None for key in ("gora.rank_min", "gora.rank_max"))


def _shares_out_nothing(written: Written) -> bool:
    return _makes_plan(written) and all(written(key) is None for key in _SHARES_OUT)


AUTO: tuple[Setting, ...] = (
    Setting(
        key="adapter.targets",
        value="auto",
        why="the same number of parameters ends about 2 % lower on all linear layers than on attention alone",
        applies=lambda written: not written("adapter.experts"),
    ),
    Setting(
        key="adapter.rank",
        value="auto",
        why="as many parameters as rank 8 on attention",
        applies=_leaves_the_rank_open,
    ),
    Setting(
        key="gora.allocation",
        value="equal",
        why="once the layers and the rate are right, equal ranks are as good as any",
        applies=_shares_out_nothing,
    ),
    Setting(
        key="gora.budget",
        value="parameters",
        why="as many parameters as asked for, whatever the bounds do",
        applies=_makes_plan,
    ),
    Setting(
        key="gora.gamma",
        value="auto",
        why="a fixed share of the gradient may start above the base model's loss",
        applies=_makes_plan,
    ),
    Setting(
        key="gora.steps",
        value="auto",
        why="more micro-batches than it takes for the gradients to settle tell nothing new",
        applies=_makes_plan,
    ),
    Setting(
        key="train.learning_rate",
        value="auto",
        why="a third of the best rate costs up to 5 % of the loss, three times as much up to 18 %, or the whole run",
    ),
    Setting(
        key="train.loraplus_lr_ratio",
        value=1.0,
        why="with a rate that was looked for, one rate for A and B is as good as two, and harder to get wrong",
        applies=_makes_plan,
    ),
    Setting(key="train.batch_size", value=16, why="four times as many steps as 64 from the same rows"),
    Setting(
        key="train.micro_batch_size",
        value="auto",
        why="as many rows as memory holds",
        applies=lambda written: written("gora.micro_batch_size") is None,
    ),
    Setting(
        key="train.activation_checkpointing",
        value="auto",
        why="only where memory asks for it",
    ),
    Setting(key="distributed", value="auto", why="sharded weights only where a GPU has no room for them"),
)
_BY_KEY = {setting.key: setting for setting in AUTO}


def fill(document: Document) -> None:
    """Put the preset's values where the recipe says nothing, and what its own values imply."""

    def written(key: str) -> Any:
        return document.value(tuple(key.split(".")))

    if written("adapter.targets") == "auto" or written("adapter.parameters") is not None:
        _put(document, "adapter.rank", "auto", _IMPLIED)
    if written("adapter.parameters") is not None and _makes_plan(written):
        _put(document, "gora.budget", "parameters", _IMPLIED)
    if document.value(("preset",)) in (None, "auto"):
        for setting in AUTO:
            if setting.applies(written):
                _put(document, setting.key, setting.value, PRESET)


def take_back(document: Document, keys: tuple[str, ...]) -> bool:
    """Drop those of the preset's values that what was written contradicts; whether there were any."""
    found = [key for key in (tuple(key.split(".")) for key in keys) if document.places.get(key) == PRESET]
    for key in found:
        del document.places[key]
        section = document.value(key[:-1]) if len(key) > 1 else document.values
        section.pop(key[-1], None)
    return bool(found)


def origins_of(document: Document) -> Mapping[str, Origin]:
    """Where every value comes from that is not the schema's default, by dotted key."""
    origins = {}
    for key, place in document.places.items():
        name = ".".join(key)
        if place == PRESET:
            origins[name] = Origin("preset", _BY_KEY[name].why)
        elif not isinstance(document.value(key), dict):
            origins[name] = Origin("recipe", _short(place))
    return origins


def _short(place: Place) -> str:
    """A file without its folder, which says nothing to whoever gets the run."""
    return place.origin if place.line is None else f"{Path(place.origin).name}:{place.line}"


def _put(document: Document, name: str, value: Any, place: Place) -> None:
    """Set what was not written; a key that is there without a value counts as written."""
    key: KeyPath = tuple(name.split("."))
    around: Any = document.values
    for part in key[:-1]:
        around = around.setdefault(part, {}) if isinstance(around, dict) else None
        if around is None:
            return
    if isinstance(around, dict) and key not in document.places:
        around[key[-1]] = value
        document.places[key] = place
