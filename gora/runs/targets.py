"""The targets of a run: what is adapted of the loaded model, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from gora.adapters.dry_wrap import leave_out
from gora.gradients.reach import without_effect
from gora.models.experts import FusedExperts, Target, matrices_of
from gora.models.targets import kind_of
from gora.runs.base_model import row_to_try_out
from gora.runs.context import RunContext
from gora.runtime.console import output


def settle_targets(context: RunContext, model: nn.Module) -> dict[str, Target]:
    """The layers and fused experts to adapt, printed by kind, with what is left beside them.

    Raises:
        InputError: the loss depends on none of them, or an adapter on one that was asked for would do nothing.
    """
    row = row_to_try_out(context)
    matrices = matrices_of(context.chosen.of(model))
    idle = without_effect(model, matrices, lambda: context.loss_of(model)(row))
    context.adapt(leave_out(context.chosen, context.recipe.adapter, idle))
    targets = context.chosen.of(model)
    kinds = Counter(map(kind_of, context.chosen.layers))
    output.say(
        f"targets   {len(context.chosen.layers)} layers: "
        + ", ".join(f"{kind} x{count}" for kind, count in kinds.items())
    )
    if groups := {name: target for name, target in targets.items() if isinstance(target, FusedExperts)}:
        output.say(f"experts   {_told(groups)}")
    output.log("\n".join(targets))
    for line in context.chosen.lines():
        output.say(line)
    if warning := context.chosen.warning():
        output.warn_once(warning)
    return targets


def _told(groups: Mapping[str, FusedExperts]) -> str:
    """How many groups of fused experts there are of each kind, and how many experts in one."""
    # A module that has nothing but its experts calls them its weight.
    kinds = Counter((kind_of(name.removesuffix(".weight")), group.count) for name, group in groups.items())
    parts = ", ".join(f"{kind} x{number} of {count} experts" for (kind, count), number in kinds.items())
    return f"{len(groups)} groups with a rank each: {parts}"
