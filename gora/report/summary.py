"""What a plan comes to: per module kind, and in total against LoRA."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gora.core.ranks import PAPER, RankBounds, shares_of, unclipped_ranks
from gora.plan import ModulePlan, Plan
from gora.report.grid import Grid

Bound = Literal["rank_min", "rank_max"]


@dataclass(frozen=True, kw_only=True)
class KindSummary:
    """All modules of one kind."""

    kind: str
    layers: int
    rank_min: int
    rank_mean: float
    rank_max: int
    parameters: int
    parameter_share: float
    lora_parameters: int
    """What LoRA at the reference rank would train on the same layers."""
    importance_share: float
    """Sum of the advantages: the kind's share in all importance."""
    importance_share_mean: float
    """The same, per layer."""
    clipped_at_rank_min: int
    clipped_at_rank_max: int


def parameter_ratio(plan: Plan) -> float | None:
    """Trainable parameters over those of LoRA at the reference rank; None for a plan without layers."""
    return plan.parameters / plan.lora_parameters if plan.lora_parameters else None


def wanted_ranks(plan: Plan) -> dict[str, int]:
    """Rank of each module before clipping under the budget of the paper; see `unclipped_ranks`."""
    if not plan.modules:
        return {}
    shapes, sizes = [module.shape for module in plan.modules], [module.size for module in plan.modules]
    # The shares of the paper's rule are in the plan.
    shares = (
        [module.advantage for module in plan.modules]
        if plan.rule == PAPER
        else shares_of([module.importance for module in plan.modules], shapes, plan.rule, sizes)
    )
    ranks = unclipped_ranks(shares, shapes, plan.reference_rank, sizes)
    return {module.name: rank for module, rank in zip(plan.modules, ranks, strict=True)}


def clipped(plan: Plan) -> dict[str, Bound]:
    """The modules whose rank a bound decided, and which bound; one without an entry got the rank that it earned.

    Under budget `parameters` the plan does not hold the b that was found, so every module whose rank lies on a bound
    counts. Rank 0 is on no bound: no share is below zero. The width of a matrix counts as an upper bound.
    """
    wanted = wanted_ranks(plan) if plan.budget == "paper" else {}
    bounds = RankBounds(plan.rank_min, plan.rank_max)
    found: dict[str, Bound] = {}
    for module in plan.modules:
        bound = _bound_of(module, bounds, wanted.get(module.name))
        if bound is not None:
            found[module.name] = bound
    return found


def summarize_kinds(plan: Plan, grid: Grid, decided: Mapping[str, Bound]) -> list[KindSummary]:
    """One summary a module kind, in the order of the grid's columns.

    Args:
        plan: the plan.
        grid: `arrange` of its modules.
        decided: `clipped` of the plan.
    """
    members: dict[str, list[ModulePlan]] = {kind: [] for kind in grid.columns}
    for module in plan.modules:
        members[grid.kind(module.name)].append(module)
    return [_summarize(kind, modules, plan, decided) for kind, modules in members.items()]


def _summarize(kind: str, modules: list[ModulePlan], plan: Plan, decided: Mapping[str, Bound]) -> KindSummary:
    ranks = [module.rank for module in modules]
    parameters = sum(module.parameters for module in modules)
    importance = math.fsum(module.advantage for module in modules)
    at_bounds = [decided.get(module.name) for module in modules]
    return KindSummary(
        kind=kind,
        layers=len(modules),
        rank_min=min(ranks),
        rank_mean=sum(ranks) / len(ranks),
        rank_max=max(ranks),
        parameters=parameters,
        parameter_share=parameters / plan.parameters if plan.parameters else 0.0,
        lora_parameters=plan.reference_rank * sum(module.parameters_per_rank for module in modules),
        importance_share=importance,
        importance_share_mean=importance / len(modules),
        clipped_at_rank_min=at_bounds.count("rank_min"),
        clipped_at_rank_max=at_bounds.count("rank_max"),
    )


def _bound_of(module: ModulePlan, bounds: RankBounds, wanted: int | None) -> Bound | None:
    smallest = bounds.clip(0, module.shape)
    largest = bounds.clip(max(module.shape), module.shape)
    if module.rank == smallest > 0 and (wanted is None or wanted < smallest):
        return "rank_min"
    if module.rank == largest > 0 and (wanted is None or wanted > largest):
        return "rank_max"
    return None
