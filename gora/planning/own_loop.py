"""A plan for a training loop that is not gora's: PEFT's configuration and the initial values, without a recipe."""

from __future__ import annotations

from typing import Literal

from peft import LoraConfig
from pydantic import ValidationError

from gora.core.initial import InitA, Scale, Step
from gora.core.ranks import Allocation
from gora.errors import InputError
from gora.gradients.mean import MeanGradients
from gora.methods.gora import plan_config
from gora.plan import DataIdentity, Factors, ModelIdentity
from gora.planning.decisions import PassInputs, make_plan
from gora.recipe.data_schema import DataSection, SourceSection
from gora.recipe.schema import AdapterSection, GoraSection, ImportanceKind, ModelSection, Recipe


def plan_adapter(
    gradients: MeanGradients,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    gamma: float = 0.05,
    init_a: InitA = "random",
    step: Step = "gradient",
    scale: Scale = "mean",
    balance: bool = False,
    importance: ImportanceKind = "sensitivity",
    allocation: Allocation = "proportional",
    temperature: float = 0.5,
    budget: Literal["paper", "parameters"] = "paper",
    rank_min: int | Literal["auto"] = "auto",
    rank_max: int | Literal["auto", "unbounded"] = "auto",
    seed: int = 42,
) -> tuple[LoraConfig, Factors]:
    """Choose ranks and initial values from gradients.

    Args:
        gradients: what `mean_gradients` returned; the model it was collected from is still there.
        rank: as `adapter.rank` in a recipe: the reference rank, whose budget is shared out.
        alpha: as `adapter.alpha`: numerator of the scaling.
        dropout: as `adapter.dropout`.
        gamma: as `gora.gamma`: size of the first step that the adapter starts with.
        init_a: as `gora.init_a`.
        step: as `gora.step`.
        scale: as `gora.scale`.
        balance: as `gora.balance`.
        importance: as `gora.importance`.
        allocation: as `gora.allocation`.
        temperature: as `gora.temperature`.
        budget: as `gora.budget`.
        rank_min: as `gora.rank_min`.
        rank_max: as `gora.rank_max`.
        seed: of the random A.

    Returns:
        The configuration for `get_peft_model`, with a rank and an alpha for every layer; and A (rank, in) and B
        (out, rank) by layer, float32 on the CPU, which `set_initial_values` puts into the wrapped model. Fused
        experts have (experts, rank, in) and (experts, out, rank).

    Raises:
        InputError: a setting is outside of its range.
        GoraError: no gradient reaches any target, or every layer gets rank 0.
    """
    try:
        recipe = Recipe(
            model=ModelSection(name="-"),
            data=DataSection(train=SourceSection(path="-")),
            adapter=AdapterSection(rank=rank, alpha=float(alpha), dropout=float(dropout)),
            gora=GoraSection(
                gamma=float(gamma),
                init_a=init_a,
                step=step,
                scale=scale,
                balance=balance,
                importance=importance,
                allocation=allocation,
                temperature=float(temperature),
                budget=budget,
                rank_min=rank_min,
                rank_max=rank_max,
            ),
            seed=seed,
        )
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc'][:1]))}: {detail['msg']}" for detail in error.errors()]
        raise InputError("The adapter cannot be planned with these settings:", problems) from None
    inputs = PassInputs(
        model=ModelIdentity(name="", config="", weights=""),
        data=DataIdentity(fingerprint=""),
        steps=gradients.counted,
        micro_batch_size=1,
        seed=seed,
        experts=gradients.experts,
    )
    plan, factors = make_plan(recipe, inputs, gradients.shapes, gradients.statistics)
    return plan_config(plan, recipe.adapter.dropout, [*gradients.module_names, *gradients.experts]), factors
