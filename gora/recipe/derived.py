"""Numbers that follow from a recipe's settings, each computed here and nowhere else."""

from __future__ import annotations

from typing import Any

from gora.core.ranks import RankBounds
from gora.recipe.schema import AdapterSection, GoraSection, Recipe


def rank_bounds(settings: GoraSection, adapter: AdapterSection) -> RankBounds:
    """Resolve `auto`: r_min is half the reference rank, r_max four times it."""
    smallest = max(1, adapter.rank // 2) if settings.rank_min == "auto" else settings.rank_min
    if settings.rank_max == "unbounded":
        return RankBounds(smallest, None)
    return RankBounds(smallest, 4 * adapter.rank if settings.rank_max == "auto" else settings.rank_max)


def micro_batch_size(recipe: Recipe) -> int:
    """Rows in one micro-batch of the gradient pass."""
    return recipe.gora.micro_batch_size or recipe.train.micro_batch_size


def by_key(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted key, such as `train.epochs`, as JSON says it."""
    return _flat(recipe.model_dump(mode="json"))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            settings |= _flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings
