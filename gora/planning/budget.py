"""`adapter.rank: auto`: the rank that a number of parameters comes to on the layers that are adapted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gora.adapters.dry_wrap import Chosen
from gora.errors import InputError
from gora.methods import METHODS
from gora.models.experts import matrices_of
from gora.models.load import empty_model
from gora.models.targets import find_targets, weight_shape
from gora.recipe.origins import Origin
from gora.recipe.rules import contradictions
from gora.recipe.schema import AdapterSection
from gora.runs.context import RunContext
from gora.runtime.console import output

RANK, PARAMETERS = "adapter.rank", "adapter.parameters"
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
    adapter = context.recipe.adapter
    if adapter.rank != "auto" and adapter.parameters is None:
        return context
    if METHODS[adapter.method].saved_as == "model":
        # Nothing has a rank; a number keeps the rest simple.
        return context.with_settings({RANK: AdapterSection().rank})
    per_rank = parameters_per_rank(context, context.chosen)
    budget = _budget(context, adapter)
    rank = budget.rank(per_rank)
    if adapter.rank != "auto":
        if adapter.rank != rank:
            raise InputError(
                f"adapter.parameters ({budget.parameters:,}) is rank {rank} on these layers, and adapter.rank is "
                f"{adapter.rank}. Leave one of the two out."
            )
        return context
    layers = len(context.chosen.layers) + len(context.chosen.experts)
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


def parameters_per_rank(context: RunContext, chosen: Chosen) -> int:
    """What one more rank of all chosen layers adds to A and B."""
    matrices = matrices_of(chosen.of(empty_model(context.source)))
    return sum(sum(weight_shape(matrix)) for matrix in matrices.values())


def _budget(context: RunContext, adapter: AdapterSection) -> Budget:
    if isinstance(adapter.parameters, int):
        return Budget(adapter.parameters, PARAMETERS)
    if adapter.parameters is not None:
        return _in_words(context, adapter.parameters)
    try:
        return _in_words(context, _USUAL)
    except InputError:
        # Not every model has layers for attention.
        return _in_words(context, _WITHOUT_ATTENTION)


def _in_words(context: RunContext, words: str) -> Budget:
    rank, targets = re.fullmatch(r"rank (\d+) on ([\w-]+)", words).groups()  # type: ignore[union-attr]
    try:
        layers = find_targets(empty_model(context.source), targets)
    except InputError as error:
        raise InputError(f"{PARAMETERS}: {words!r}: {error}") from None
    return Budget(int(rank) * sum(sum(weight_shape(layer)) for layer in layers.values()), words)
