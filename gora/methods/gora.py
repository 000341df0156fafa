"""GoRA: ranks, scaling and initial values from the plan, written so that any PEFT loader reproduces them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from gora.core.initial import module_alpha
from gora.errors import GoraError
from gora.methods.base import AdapterSettings, wrap_with_lora
from gora.plan import Factors, Plan

_ADAPTER = "default"


class Gora:
    """The method of arXiv 2502.12171."""

    needs_plan = True
    lr_ratio = 16.0

    def wrap(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        settings: AdapterSettings,
        plan: Plan | None,
        factors: Factors,
    ) -> PeftModel:
        """Wrap with the plan's ranks and values, and check that PEFT has taken them; see `Method`."""
        assert plan is not None
        names = [name for name, _ in model.named_modules()]
        wrapped = wrap_with_lora(model, plan_config(plan, settings.dropout, names))
        _fill(wrapped, plan, factors)
        verify(wrapped, plan, factors)
        return wrapped


def plan_config(plan: Plan, dropout: float, module_names: Iterable[str]) -> LoraConfig:
    """PEFT's configuration for a plan.

    PEFT divides a module's alpha by its rank, so alpha_pattern holds alpha sqrt(r): the quotient is alpha / sqrt(r)
    without `use_rslora`, which many runtimes ignore. The most common rank needs no pattern entry.

    Args:
        plan: the plan; modules of rank 0 stay unwrapped.
        dropout: dropout on the adapter's input.
        module_names: all module names of the model, to see whether a plain key would match more than one.
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
        target_modules=[module.name for module in adapted],
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
    layers = _lora_layers(wrapped)
    planned = {module.name: module for module in plan.adapted}
    wrong = [f"{name} is wrapped, but not in the plan" for name in layers.keys() - planned.keys()]
    for name, module in planned.items():
        if name not in layers:
            wrong.append(f"{name} is not wrapped")
            continue
        layer = layers[name]
        if layer.r[_ADAPTER] != module.rank:
            wrong.append(f"{name} has rank {layer.r[_ADAPTER]}, planned {module.rank}")
        elif layer.scaling[_ADAPTER] != module.scaling:
            wrong.append(f"{name} has scaling {layer.scaling[_ADAPTER]}, planned {module.scaling}")
        elif not all(torch.equal(mine.weight.cpu(), value) for mine, value in _pairs(layer, factors[name])):
            wrong.append(f"{name} does not hold the planned values")
    if wrong:
        raise GoraError("The adapter differs from the plan:\n" + "\n".join(f"  - {line}" for line in sorted(wrong)))


def _fill(wrapped: PeftModel, plan: Plan, factors: Factors) -> None:
    layers = _lora_layers(wrapped)
    with torch.no_grad():
        for module in plan.adapted:
            for mine, value in _pairs(layers[module.name], factors[module.name]):
                mine.weight.copy_(value)


def _pairs(layer: LoraLayer, factors: tuple[torch.Tensor, torch.Tensor]) -> Iterable[tuple[nn.Linear, torch.Tensor]]:
    return zip((layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]), factors, strict=True)  # type: ignore[arg-type]


def _lora_layers(wrapped: PeftModel) -> dict[str, LoraLayer]:
    inner = wrapped.base_model.model
    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}  # type: ignore[union-attr]


def _pattern_keys(names: list[str], module_names: Iterable[str]) -> list[str]:
    """Full names where each matches one module only, else anchored expressions.

    PEFT takes a key as an unescaped regular expression that may begin after any dot.
    """
    everything = "\n".join(module_names)
    collide = any(len(re.findall(rf"^(?:.*\.)?(?:{name})$", everything, re.MULTILINE)) > 1 for name in names)
    return [f"^{re.escape(name)}" for name in names] if collide else names
