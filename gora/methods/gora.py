"""GoRA: ranks, scaling and initial values from the plan, written so that any PEFT loader reproduces them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gora.core.initial import module_alpha
from gora.errors import GoraError
from gora.methods.base import ADAPTER, Method, Wrapping, differences, lora_layers, pair, wrap_with
from gora.plan import Factors, Plan


class Gora(Method):
    """The method of arXiv 2502.12171; with DoRA, magnitudes are those of the weights after the first step."""

    name = "gora"
    lr_ratio = 16.0

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """Wrap with the plan's ranks and values, and check that PEFT has taken them; see `Method`."""
        plan, factors, shared = wrapping.required_plan, wrapping.factors, wrapping.settings
        names = [*(name for name, _ in model.named_modules()), *wrapping.experts]
        config = plan_config(plan, shared.dropout, names)
        config.use_dora = shared.dora
        wrapped = wrap_with(model, config)
        set_initial_values(wrapped, factors)
        verify(wrapped, plan, factors)
        return wrapped


def plan_config(plan: Plan, dropout: float, module_names: Iterable[str]) -> LoraConfig:
    """PEFT's configuration for a plan.

    PEFT divides a module's alpha by its rank, so alpha_pattern holds alpha sqrt(r): the quotient is alpha / sqrt(r)
    without `use_rslora`, which many runtimes ignore. The most common rank needs no pattern entry. A parameter with
    fused experts has its entry under its own full name.

    Args:
        plan: the plan; modules of rank 0 stay unwrapped.
        dropout: dropout on the adapter's input.
        module_names: all names of the model's modules and fused experts, to see whether a plain key would match more
            than one.
    """
    adapted = plan.adapted
    if not adapted:
        raise GoraError("The plan gives rank 0 to every layer: there is nothing to train. Raise gora.rank_min.")
    common = Counter(module.rank for module in adapted).most_common(1)[0][0]
    other = [module for module in adapted if module.rank != common]
    keys = _pattern_keys([module.name for module in other], module_names)
    return LoraConfig(
        r=common,
        lora_alpha=module_alpha(plan.alpha, common),  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=[module.name for module in adapted if module.experts is None],
        target_parameters=[module.name for module in adapted if module.experts is not None] or None,
        rank_pattern={key: module.rank for key, module in zip(keys, other, strict=True)},
        alpha_pattern={key: module_alpha(plan.alpha, module.rank) for key, module in zip(keys, other, strict=True)},
        init_lora_weights=True,
        use_rslora=False,
    )


def verify(wrapped: PeftModel, plan: Plan, factors: Factors) -> None:
    """Check that exactly the plan's modules are wrapped, with its ranks, scaling and values.

    Raises:
        GoraError: naming every module that differs.
    """
    layers = lora_layers(wrapped)
    planned = {module.name: module for module in plan.adapted}
    wrong = [f"{name} is wrapped, but not in the plan" for name in layers.keys() - planned.keys()]
    for name, module in planned.items():
        if name not in layers:
            wrong.append(f"{name} is not wrapped")
            continue
        layer = layers[name]
        if layer.r[ADAPTER] != module.rank:
            wrong.append(f"{name} has rank {layer.r[ADAPTER]}, planned {module.rank}")
        elif layer.scaling[ADAPTER] != module.scaling:
            wrong.append(f"{name} has scaling {layer.scaling[ADAPTER]}, planned {module.scaling}")
        elif not all(
            torch.equal(mine.cpu(), value) for mine, value in zip(pair(layer), as_held(factors[name]), strict=True)
        ):
            wrong.append(f"{name} does not hold the planned values")
    if wrong:
        raise GoraError("The adapter differs from the plan:\n" + "\n".join(f"  - {line}" for line in sorted(wrong)))


def set_initial_values(wrapped: PeftModel, values: Factors) -> None:
    """Put A and B into a wrapped model; magnitudes of DoRA are taken again from the weights after that first step.

    Args:
        wrapped: the model in PEFT's adapter of the name `default`.
        values: A and B of every adapted layer, see `gora.plan.Factors`.

    Raises:
        GoraError: the model is wrapped in other layers, or with other ranks.
    """
    layers = lora_layers(wrapped)
    if told := differences(values, layers):
        raise GoraError(f"The adapter is not the one that these values are for: {'; '.join(told)}")
    with torch.no_grad():
        for name, factors in values.items():
            layer, held = layers[name], as_held(factors)
            for mine, value in zip(pair(layer), held, strict=True):
                if mine.shape != value.shape:
                    raise GoraError(f"{name} has {tuple(mine.shape)} values, and {tuple(value.shape)} are given.")
                mine.copy_(value)
            if ADAPTER in layer.lora_magnitude_vector:
                magnitudes: Any = layer.lora_magnitude_vector[ADAPTER]
                factor_a, factor_b = pair(layer)
                magnitudes.update_layer(
                    base_layer=layer.get_base_layer(),
                    lora_A=factor_a,
                    lora_B=factor_b,
                    scaling=layer.scaling[ADAPTER],
                )


def as_held(factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A and B as PEFT holds them: those of fused experts in two matrices.

    In A the rows of an expert follow each other, in B the columns of all experts for one direction do.

    Args:
        factors: A (rank, in) and B (out, rank) of a layer, or A (experts, rank, in) and B (experts, out, rank).

    Returns:
        (rank, in) and (out, rank); of experts, (experts * rank, in) and (out, rank * experts).
    """
    factor_a, factor_b = factors
    if factor_a.dim() == 2:
        return factors
    return factor_a.flatten(0, 1), factor_b.permute(1, 2, 0).flatten(1)


def _pattern_keys(names: list[str], module_names: Iterable[str]) -> list[str]:
    """Full names where each matches one module only, else anchored expressions.

    PEFT takes a key as an unescaped regular expression that may begin after any dot.
    """
    everything = "\n".join(module_names)
    collide = any(len(re.findall(rf"^(?:.*\.)?(?:{name})$", everything, re.MULTILINE)) > 1 for name in names)
    return [f"^{re.escape(name)}" for name in names] if collide else names
