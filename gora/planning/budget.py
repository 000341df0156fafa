"""`adapter.rank: auto`: the rank that a number of parameters comes to on the layers that are adapted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gora.errors import InputError
from gora.methods import METHODS
from gora.models.experts import matrices_of
from gora.models.load import empty_model
from gora.models.targets import find_targets, named_for_attention, weight_shape
from gora.recipe.origins import Origin
from gora.recipe.rules import contradictions
from gora.recipe.schema import AdapterSection
from gora.runs.context import RunContext
from gora.runtime.console import output

RANK, PARAMETERS = "adapter.rank", "adapter.parameters"
Shapes = Callable[[str], Iterable[tuple[int, int]]]
"""(out, in) of the layers that `attention` or `all-linear` names.

Raises:
    InputError: there are none.
"""
_USUAL = "rank 8 on attention"
_WITHOUT_ATTENTION = "rank 8 on all-linear"


@dataclass(frozen=True)
class Budget:
    """So many parameters, and where the number comes from."""

    parameters: int
    words: str

    def rank(self, per_rank: int) -> int:
        """The rank that comes nearest, at least 1, where every rank of all layers has so many parameters."""
        return max(1, math.floor(self.parameters / per_rank + 0.5))


def settle_rank(context: RunContext) -> RunContext:
    """Put numbers in the place of `rank: auto` and of a budget in words; they follow from the model alone.

    Raises:
        InputError: the budget is that of layers that the model does not have, or a rank and a number of parameters were
            given that are not the same on these layers.
    """
    if not _is_open(context.recipe.adapter):
        return context
    chosen = context.chosen
    matrices = matrices_of(chosen.of(empty_model(context.source)))

    def shapes(targets: str) -> list[tuple[int, int]]:
        return [weight_shape(layer) for layer in find_targets(empty_model(context.source), targets).values()]

    layers = len(chosen.layers) + len(chosen.experts)
    return _settled(context, sum(sum(weight_shape(matrix)) for matrix in matrices.values()), layers, shapes)


def settle_rank_without_model(context: RunContext, shapes: Mapping[str, tuple[int, int]]) -> RunContext:
    """As `settle_rank`, by the names and shapes (out, in) of the layers whose gradients were kept.

    Raises:
        InputError: see `settle_rank`.
    """
    if not _is_open(context.recipe.adapter):
        return context

    def named(targets: str) -> list[tuple[int, int]]:
        found = [shape for name, shape in shapes.items() if targets != "attention" or named_for_attention(name)]
        if not found:
            raise InputError("none of the layers whose gradients were kept is named for attention.")
        return found

    return _settled(context, sum(map(sum, shapes.values())), len(shapes), named)


def _is_open(adapter: AdapterSection) -> bool:
    return adapter.rank == "auto" or adapter.parameters is not None


def _settled(context: RunContext, per_rank: int, layers: int, shapes: Shapes) -> RunContext:
    """With the rank of so many layers, of which one more rank of each adds `per_rank` parameters."""
    adapter = context.recipe.adapter
    if METHODS[adapter.method].saved_as == "model":
        # Nothing has a rank; a number keeps the rest simple.
        return context.with_settings({RANK: AdapterSection().rank})
    budget = _budget(adapter, shapes)
    rank = budget.rank(per_rank)
    if adapter.rank != "auto":
        if adapter.rank != rank:
            raise InputError(
                f"adapter.parameters ({budget.parameters:,}) is rank {rank} on these layers, and adapter.rank is "
                f"{adapter.rank}. Leave one of the two out."
            )
        return context
    comes_to = f"{rank} on {layers} layers has {rank * per_rank:,} parameters"
    output.say(f"rank      {rank} (auto): {comes_to}, of {budget.parameters:,} to spend ({budget.words})")
    origins = {
        RANK: Origin("computed", f"{comes_to}, the nearest to {budget.parameters:,}"),
        PARAMETERS: Origin("computed", budget.words),
    }
    settled = context.with_settings({RANK: rank, PARAMETERS: budget.parameters}, origins=origins)
    if problems := [f"{found.keys[0]}: {found.text}" for found in contradictions(settled.recipe)]:
        raise InputError(f"adapter.rank: auto is {rank} here, and some settings do not go with it.", problems)
    return settled


def _budget(adapter: AdapterSection, shapes: Shapes) -> Budget:
    if isinstance(adapter.parameters, int):
        return Budget(adapter.parameters, PARAMETERS)
    if adapter.parameters is not None:
        return _in_words(adapter.parameters, shapes)
    try:
        return _in_words(_USUAL, shapes)
    except InputError:
        # Not every model has layers for attention.
        return _in_words(_WITHOUT_ATTENTION, shapes)


def _in_words(words: str, shapes: Shapes) -> Budget:
    rank, targets = re.fullmatch(r"rank (\d+) on ([\w-]+)", words).groups()  # type: ignore[union-attr]
    try:
        per_rank = sum(map(sum, shapes(targets)))
    except InputError as error:
        raise InputError(f"{PARAMETERS}: {words!r}: {error}") from None
    return Budget(int(rank) * per_rank, words)
