"""From statistics of gradients to a plan: importances, ranks, initial values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from gora import __version__
from gora.core.initial import Start, scaling
from gora.core.ranks import allocate, allocate_parameters
from gora.errors import GoraError, InputError
from gora.gradients.statistics import Norm, Statistics
from gora.models.experts import member_names
from gora.plan import DataIdentity, Decision, Factors, ModelIdentity, ModulePlan, Plan
from gora.recipe.derived import (
    allocation_rule,
    asked_parameters,
    by_key,
    first_gamma,
    rank_bounds,
    reference_rank,
)
from gora.recipe.origins import Origin
from gora.recipe.schema import GoraSection, Recipe
from gora.runtime.console import output
from gora.runtime.progress import Meter

_BUDGET_MET = 0.005
_DECIDED = (
    "adapter.targets",
    "adapter.parameters",
    "adapter.rank",
    "gora.allocation",
    "gora.importance",
    "gora.init_a",
    "gora.step",
    "gora.gamma",
    "gora.steps",
)
"""Settings that a plan says first, whoever decided them."""
_DEFAULT = Origin("default")
_NORM_OF_STEP: Mapping[str, Norm] = {"weight": "frobenius", "weight-spectral": "spectral"}


@dataclass(frozen=True, kw_only=True)
class PassInputs:
    """What gradients were collected from.

    Attributes:
        model: the base model.
        data: the training rows.
        steps: N, micro-batches asked for, or run where they were found to be enough.
        micro_batch_size: rows in each.
        seed: which rows, in which order.
        experts: how many experts each group has that gets one rank, by its name.
        stopped: why there were no more micro-batches; empty where all were run that were asked for.
        signal, above_noise: `share` and `above` of `Signal`.
    """

    model: ModelIdentity
    data: DataIdentity
    steps: int
    micro_batch_size: int
    seed: int
    experts: Mapping[str, int] = field(default_factory=dict)
    stopped: str = ""
    signal: Mapping[str, float] = field(default_factory=dict)
    above_noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Matrices that get one rank: a layer, or the fused experts of a block.

    Attributes:
        name: of the module in the plan.
        shape: (out, in) of each matrix.
        members: names of the matrices.
        experts: how many there are; None for a layer.
    """

    name: str
    shape: tuple[int, int]
    members: Sequence[str]
    experts: int | None = None


def make_plan(
    recipe: Recipe,
    inputs: PassInputs,
    shapes: Mapping[str, tuple[int, int]],
    statistics: Statistics,
    measured: Mapping[str, Decision] | None = None,
) -> tuple[Plan, Factors]:
    """Ranks, scaling, A and B of every target.

    Experts of one group share a rank, which is what the paper's equation gives to the mean of them.

    Args:
        recipe: gives the reference rank, the bounds, gamma, alpha and the importance.
        inputs: what the statistics are of.
        shapes: (out, in) of every linear layer and of every expert.
        statistics: answers about their mean gradients.
        measured: what was decided for settings that the recipe leaves open; a gamma that is still open begins its
            search.

    Raises:
        GoraError: no gradient reaches any target, nothing of them is above their noise, or some are not finite.
        InputError: an importance is asked for that cannot be had of these gradients.
    """
    settings, adapter, measured = recipe.gora, recipe.adapter, measured or {}
    groups = _groups(shapes, inputs.experts)
    importances = [_importance(group, settings, inputs, statistics) for group in groups]
    norms = [math.hypot(*(statistics.gradient_norm(name) for name in group.members)) for group in groups]
    _refuse_not_finite(groups, importances, norms)
    bounds, rule = rank_bounds(settings, adapter), allocation_rule(settings)
    try:
        ranks = choose_ranks(
            recipe, importances, [group.shape for group in groups], [len(group.members) for group in groups]
        )
    except ValueError as error:
        raise GoraError(f"No ranks can be chosen: {error}.") from None

    total = sum(importances)
    modules = tuple(
        ModulePlan(
            name=group.name,
            shape=group.shape,
            experts=group.experts,
            importance=value,
            advantage=value / total,
            rank=rank,
            scaling=scaling(adapter.alpha, rank) if rank else 0.0,
            gradient_norm=norm,
            signal=inputs.signal.get(group.name),
        )
        for group, value, norm, rank in zip(groups, importances, norms, ranks, strict=True)
    )
    gamma = float(measured["gora.gamma"].value) if "gora.gamma" in measured else first_gamma(settings)
    start = Start(
        seed=recipe.seed,
        gamma=gamma,
        alpha=adapter.alpha,
        init_a=settings.init_a,
        step=settings.step,
        scale=settings.scale,
        balance=settings.balance,
    )
    factors = _factors(groups, ranks, statistics, start)
    plan = Plan(
        gora_version=__version__,
        model=inputs.model,
        data=inputs.data,
        steps=inputs.steps,
        micro_batch_size=inputs.micro_batch_size,
        seed=recipe.seed,
        gamma=gamma,
        init_a=settings.init_a,
        step=settings.step,
        scale=settings.scale,
        balance=settings.balance,
        alpha=adapter.alpha,
        reference_rank=reference_rank(adapter),
        asked_parameters=asked_parameters(adapter) if settings.budget == "parameters" else None,
        rank_min=bounds.smallest,
        rank_max=bounds.largest,
        importance=settings.importance,
        budget=settings.budget,
        allocation=rule.allocation,
        temperature=rule.temperature if rule.allocation == "softmax" else None,
        decisions={**_decided(recipe), **_of_pass(settings, inputs), **measured},
        modules=modules,
    )
    _say_budget(plan)
    return plan, factors


def _decided(recipe: Recipe) -> dict[str, Decision]:
    """What was decided about layers, ranks, start and pass without a look at gradients, and by whom."""
    values = by_key(recipe)
    return {
        key: Decision(value=values[key], origin=origin.source, why="" if origin.source == "recipe" else origin.detail)
        for key in _DECIDED
        if values[key] not in ("auto", None) or key == "adapter.targets"
        for origin in [recipe.origins.get(key, _DEFAULT)]
    }


def _of_pass(settings: GoraSection, inputs: PassInputs) -> dict[str, Decision]:
    """How many micro-batches there were, where the recipe left it open."""
    if settings.steps != "auto":
        return {}
    why = inputs.stopped or "nothing had settled before"
    return {"gora.steps": Decision(value=inputs.steps, origin="measured", why=why)}


def _say_budget(plan: Plan) -> None:
    """Whole ranks and bounds do not let every count be met; where it was asked for, a miss is said."""
    aim = plan.asked_parameters or plan.lora_parameters
    miss = plan.parameters / aim - 1 if aim else 0.0
    if plan.budget == "parameters" and abs(miss) > _BUDGET_MET:
        asked = "those asked for" if plan.asked_parameters else f"LoRA's at rank {plan.reference_rank}"
        output.warn(
            f"{plan.parameters:,} parameters are {abs(miss):.1%} {'above' if miss > 0 else 'below'} {asked} "
            f"({aim:,}), the nearest that whole ranks from {plan.rank_min} to "
            f"{plan.rank_max or 'the width of a layer'} come to. Widen the bounds (gora.rank_min, gora.rank_max)."
        )


def _importance(group: _Group, settings: GoraSection, inputs: PassInputs, statistics: Statistics) -> float:
    kind = settings.importance
    if kind != "above-noise":
        return math.fsum(statistics.importance(name, kind) for name in group.members)
    if group.name not in inputs.above_noise:
        raise InputError(
            "gora.importance: above-noise compares two halves of the gradients, which were not kept here. It needs two "
            "micro-batches at least, and gradients that this gora has collected."
        )
    return inputs.above_noise[group.name]


def choose_ranks(
    recipe: Recipe, importances: Sequence[float], shapes: Sequence[tuple[int, int]], sizes: Sequence[int] = ()
) -> list[int]:
    """The ranks that a recipe gives to importances; see `allocate`.

    Raises:
        ValueError: the importances say nothing.
    """
    bounds, rule = rank_bounds(recipe.gora, recipe.adapter), allocation_rule(recipe.gora)
    rank = reference_rank(recipe.adapter)
    if recipe.gora.budget == "parameters":
        return allocate_parameters(importances, shapes, rank, bounds, sizes, rule, asked_parameters(recipe.adapter))
    return allocate(importances, shapes, rank, bounds, sizes, rule)


def _groups(shapes: Mapping[str, tuple[int, int]], experts: Mapping[str, int]) -> list[_Group]:
    members = {name: member_names(name, count) for name, count in experts.items()}
    in_group = {member for names in members.values() for member in names}
    layers = [_Group(name=name, shape=shape, members=(name,)) for name, shape in shapes.items() if name not in in_group]
    return layers + [
        _Group(name=name, shape=shapes[names[0]], members=names, experts=len(names)) for name, names in members.items()
    ]


def _refuse_not_finite(groups: Sequence[_Group], importances: Sequence[float], norms: Sequence[float]) -> None:
    if lost := [
        group.name
        for group, value, norm in zip(groups, importances, norms, strict=True)
        if not (math.isfinite(value) and math.isfinite(norm))
    ]:
        some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise GoraError(
            f"No ranks can be chosen: gradients of {len(lost)} of {len(groups)} layers are too large for float32 "
            f"({some}). Look at the weights of the base model, whose values may be far too large, or leave these "
            "layers out with adapter.exclude."
        )


def _factors(groups: Sequence[_Group], ranks: Sequence[int], statistics: Statistics, start: Start) -> Factors:
    adapted = [(group, rank) for group, rank in zip(groups, ranks, strict=True) if rank]
    factors: Factors = {}
    with Meter(output, "values", len(adapted)) as meter:
        for group, rank in adapted:
            pairs = [statistics.factors(name, rank, _of_layer(start, name, statistics)) for name in group.members]
            if group.experts is None:
                (factors[group.name],) = pairs
            else:
                each_a, each_b = zip(*pairs, strict=True)
                factors[group.name] = torch.stack(each_a), torch.stack(each_b)
            meter.advance()
    return factors


def _of_layer(start: Start, name: str, statistics: Statistics) -> Start:
    """With the norm of the layer's weight, where the step is measured against it."""
    kind = _NORM_OF_STEP.get(start.step)
    return start if kind is None else replace(start, weight_norm=statistics.weight_norm(name, kind))
