"""From statistics of gradients to a plan: importances, ranks, initial values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gora import __version__
from gora.core.initial import Start, scaling
from gora.core.ranks import allocate, allocate_parameters
from gora.errors import GoraError
from gora.gradients.statistics import Statistics
from gora.plan import DataIdentity, Factors, ModelIdentity, ModulePlan, Plan
from gora.recipe.derived import rank_bounds
from gora.recipe.schema import Recipe
from gora.runtime.console import output
from gora.runtime.progress import Meter


@dataclass(frozen=True, kw_only=True)
class PassInputs:
    """What gradients were collected from.

    Attributes:
        model: the base model.
        data: the training rows.
        steps: N, micro-batches asked for.
        micro_batch_size: rows in each.
        seed: which rows, in which order.
    """

    model: ModelIdentity
    data: DataIdentity
    steps: int
    micro_batch_size: int
    seed: int


def make_plan(
    recipe: Recipe, inputs: PassInputs, shapes: Mapping[str, tuple[int, int]], statistics: Statistics
) -> tuple[Plan, Factors]:
    """Ranks, scaling, A and B of every target.

    Args:
        recipe: gives the reference rank, the bounds, gamma, alpha and the importance.
        inputs: what the statistics are of.
        shapes: (out, in) of every target.
        statistics: answers about their mean gradients.

    Raises:
        GoraError: no gradient reaches any target.
    """
    settings, adapter = recipe.gora, recipe.adapter
    importances = [statistics.importance(name, settings.importance) for name in shapes]
    bounds = rank_bounds(settings, adapter)
    choose_ranks = allocate_parameters if settings.budget == "parameters" else allocate
    try:
        ranks = choose_ranks(importances, list(shapes.values()), adapter.rank, bounds)
    except ValueError as error:
        raise GoraError(f"No ranks can be chosen: {error}.") from None

    total = sum(importances)
    modules = tuple(
        ModulePlan(
            name=name,
            shape=shape,
            importance=value,
            advantage=value / total,
            rank=rank,
            scaling=scaling(adapter.alpha, rank) if rank else 0.0,
            gradient_norm=statistics.gradient_norm(name),
        )
        for (name, shape), value, rank in zip(shapes.items(), importances, ranks, strict=True)
    )
    factors = _factors(modules, statistics, Start(recipe.seed, settings.gamma, adapter.alpha, settings.init_a))
    plan = Plan(
        gora_version=__version__,
        model=inputs.model,
        data=inputs.data,
        steps=inputs.steps,
        micro_batch_size=inputs.micro_batch_size,
        seed=recipe.seed,
        gamma=settings.gamma,
        init_a=settings.init_a,
        alpha=adapter.alpha,
        reference_rank=adapter.rank,
        rank_min=bounds.smallest,
        rank_max=bounds.largest,
        importance=settings.importance,
        budget=settings.budget,
        modules=modules,
    )
    return plan, factors


def _factors(modules: Sequence[ModulePlan], statistics: Statistics, start: Start) -> Factors:
    adapted = [module for module in modules if module.rank]
    factors = {}
    with Meter(output, "values", len(adapted)) as meter:
        for module in adapted:
            factors[module.name] = statistics.factors(module.name, module.rank, start)
            meter.advance()
    return factors
