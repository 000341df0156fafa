"""Numbers that follow from a recipe's settings, each computed here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from gora.core.ranks import RankBounds, Rule
from gora.recipe.origins import Origin
from gora.recipe.schema import AdapterSection, GoraSection, Recipe, TrainSection

T = TypeVar("T")


def rank_bounds(settings: GoraSection, adapter: AdapterSection) -> RankBounds:
    """Resolve `auto`: r_min is half the reference rank, 0 with targets auto; r_max is four times it."""
    rank = reference_rank(adapter)
    half = 0 if adapter.targets == "auto" else max(1, rank // 2)
    smallest = half if settings.rank_min == "auto" else settings.rank_min
    if settings.rank_max == "unbounded":
        return RankBounds(smallest, None)
    return RankBounds(smallest, 4 * rank if settings.rank_max == "auto" else settings.rank_max)


def reference_rank(adapter: AdapterSection) -> int:
    """The rank that is asked for; `auto` has to be settled before."""
    return _settled("adapter.rank", adapter.rank)


def asked_parameters(adapter: AdapterSection) -> int | None:
    """The budget as a number, where one was given; words have to be settled before."""
    if isinstance(adapter.parameters, str):
        raise ValueError("adapter.parameters is still in words: it has to be settled before it is used")
    return adapter.parameters


def allocation_rule(settings: GoraSection) -> Rule:
    """How importances share out the budget; a temperature that is not used is that of the default."""
    if settings.allocation == "softmax":
        return Rule(settings.allocation, settings.temperature)
    return Rule(settings.allocation)


_FIRST_TRIED = {"gradient": 0.05, "spectral": 0.05, "weight": 0.01, "weight-spectral": 0.05}


def first_gamma(settings: GoraSection) -> float:
    """gamma, or what a search for it begins with, by what it is a fraction of."""
    return _FIRST_TRIED[settings.step] if settings.gamma == "auto" else settings.gamma


MOST_STEPS = 64
"""N of the paper, which `gora.steps: auto` never exceeds."""


def gradient_steps(recipe: Recipe) -> int:
    """Micro-batches of the gradient pass, at most."""
    return MOST_STEPS if recipe.gora.steps == "auto" else recipe.gora.steps


def micro_batch_size(recipe: Recipe) -> int:
    """Rows in one micro-batch of the gradient pass; `auto` has to be settled before."""
    return _settled("gora.micro_batch_size", recipe.gora.micro_batch_size or recipe.train.micro_batch_size)


def training_micro_batch_size(settings: TrainSection) -> int:
    """Rows in one micro-batch of training; `auto` has to be settled before."""
    return _settled("train.micro_batch_size", settings.micro_batch_size)


def learning_rate(settings: TrainSection) -> float:
    """Peak learning rate of A; `auto` has to be settled before."""
    return _settled("train.learning_rate", settings.learning_rate)


def recomputes_activations(settings: TrainSection) -> bool:
    """Whether activations are recomputed; `auto` has to be settled before."""
    return _settled("train.activation_checkpointing", settings.activation_checkpointing)


AUTOMATIC = ("train.micro_batch_size", "gora.micro_batch_size", "train.activation_checkpointing")
"""Settings whose `auto` follows from the memory of the machine."""


def automatic(recipe: Recipe) -> frozenset[str]:
    """Which of those settings the recipe leaves to gora; one that takes another's value is left with it."""
    values = by_key(recipe)
    found = {key for key in AUTOMATIC if values[key] == "auto"}
    follows = values["gora.micro_batch_size"] is None and "train.micro_batch_size" in found
    return frozenset(found | ({"gora.micro_batch_size"} if follows else set()))


def leaves_open(recipe: Recipe) -> bool:
    """Whether anything is `auto` that has to be settled before a model is loaded."""
    return bool(automatic(recipe)) or recipe.adapter.rank == "auto" or recipe.adapter.parameters is not None


def with_settings(recipe: Recipe, settings: Mapping[str, Any], origins: Mapping[str, Origin] | None = None) -> Recipe:
    """The recipe with other values under some dotted keys.

    Args:
        recipe: the recipe.
        settings: values by key of a section.
        origins: where they come from, if that is worth telling.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    settled = recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=values) for name, values in sections.items()}
    )
    return settled.with_origins(origins or {})


def with_distributed(recipe: Recipe, name: str) -> Recipe:
    """The recipe with an engine."""
    return recipe.model_copy(update={"distributed": name})


def _settled(key: str, value: T | Literal["auto"]) -> T:
    if value == "auto":
        raise ValueError(f"{key} is still auto: it has to be settled before it is used")
    return value


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
