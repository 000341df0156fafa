"""From statistics of gradients to a plan: importances, ranks, initial values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gora import __version__
from gora.core.initial import Start, scaling
from gora.core.ranks import RankBounds, allocate, allocate_parameters
from gora.errors import GoraError
from gora.gradients.statistics import Statistics
from gora.plan import DataIdentity, Factors, ModelIdentity, ModulePlan, Plan
from gora.recipe.schema import AdapterSection, GoraSection, Recipe
from gora.runtime.console import output
from gora.runtime.progress import Meter


@dataclass(frozen=True)
class Origin:
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
    recipe: Recipe, origin: Origin, shapes: Mapping[str, tuple[int, int]], statistics: Statistics
) -> tuple[Plan, Factors]:
    """Ranks, scaling, A and B of every target.

    Args:
        recipe: gives the reference rank, the bounds, gamma, alpha and the importance.
        origin: what the statistics are of.
        shapes: (out, in) of every target.
        statistics: answers about their mean gradients.

    Raises:
        GoraError: no gradient reaches any target.
    """
    settings, adapter = recipe.gora, recipe.adapter
    importances = [statistics.importance(name, settings.importance) for name in shapes]
    bounds = rank_bounds(settings, adapter)
    share_out = allocate_parameters if settings.budget == "parameters" else allocate
    try:
        ranks = share_out(importances, list(shapes.values()), adapter.rank, bounds)
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
        model=origin.model,
        data=origin.data,
        steps=origin.steps,
        micro_batch_size=origin.micro_batch_size,
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


def rank_bounds(settings: GoraSection, adapter: AdapterSection) -> RankBounds:
    """Resolve `auto`: r_min is half the reference rank, r_max four times it."""
    smallest = max(1, adapter.rank // 2) if settings.rank_min == "auto" else settings.rank_min
    if settings.rank_max == "unbounded":
        return RankBounds(smallest, None)
    return RankBounds(smallest, 4 * adapter.rank if settings.rank_max == "auto" else settings.rank_max)


def micro_batch_size(recipe: Recipe) -> int:
    """Rows in one micro-batch of the gradient pass."""
    return recipe.gora.micro_batch_size or recipe.train.micro_batch_size
