"""Parameter groups: B learns at a rate of its own (LoRA+, arXiv 2402.12354)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch import nn

from gora.errors import GoraError
from gora.methods import METHODS, Method
from gora.models.head import in_head
from gora.recipe.derived import learning_rate
from gora.recipe.schema import Recipe, TrainSection

_TOKENS = {"tokens": ".trainable_tokens_delta."}
_HEAD = "head"


def lr_ratio_of(recipe: Recipe) -> float:
    """Rate of the group `B` over that of all others: `train.loraplus_lr_ratio`, where `auto` is the method's own."""
    ratio = recipe.train.loraplus_lr_ratio
    return METHODS[recipe.adapter.method].lr_ratio if ratio == "auto" else ratio


def parameter_groups(
    model: nn.Module, settings: TrainSection, lr_ratio: float, parts: Mapping[str, str] = Method.parts
) -> list[dict[str, Any]]:
    """One optimizer group for each kind of parameter; a group without parameters is left out.

    Every setting stands in the group itself, because engines that replace the optimizer keep groups and lose defaults.

    Args:
        model: the model, frozen but for what is trained.
        settings: rates, decay, betas and eps.
        lr_ratio: rate of the group `B` over that of all others (LoRA+).
        parts: names of the groups, and what the names of their parameters hold. A classifier's head is a group of its
            own.

    Raises:
        GoraError: a trainable parameter belongs to no group, or nothing is trainable.
    """
    parts = {**parts, **_TOKENS}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_head = in_head(model)
    part_of = {
        name: _HEAD if of_head(name) else next((part for part, sign in parts.items() if sign in name), None)
        for name in trainable
    }
    if stray := [name for name, part in part_of.items() if part is None]:
        raise GoraError(f"Trainable parameters that belong to no group: {', '.join(stray[:5])}")
    if not trainable:
        raise GoraError("No parameter is trainable.")
    names = [*parts, _HEAD]
    members = {part: [value for name, value in trainable.items() if part_of[name] == part] for part in names}
    rates = {part: learning_rate(settings) * (lr_ratio if part == "B" else 1.0) for part in names}
    shared = {
        "weight_decay": settings.weight_decay,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
    }
    return [{"name": part, "params": members[part], "lr": rates[part], **shared} for part in rates if members[part]]


def check_groups(running: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], *, emptied: bool = False) -> None:
    """Compare the groups that really run with those that were asked for.

    Args:
        running: the engine's groups.
        wanted: those of `parameter_groups`.
        emptied: whether the engine takes the parameters out of its groups between steps, as ZeRO-3 does.

    Raises:
        GoraError: a group was dropped, emptied, or runs with other settings.
    """
    if len(running) != len(wanted):
        raise GoraError(f"The optimizer runs {len(running)} parameter groups instead of {len(wanted)}.")
    for group, expected in zip(running, wanted, strict=True):
        peak = group.get("initial_lr", group["lr"])
        found = {"lr": peak, **{key: group[key] for key in ("weight_decay", "betas", "eps")}}
        asked = {key: expected[key] for key in found}
        if (not group["params"] and not emptied) or found != asked:
            raise GoraError(f"Parameter group {expected['name']} runs with {found} instead of {asked}.")


def group_table(groups: Sequence[dict[str, Any]]) -> Table:
    """The groups as the user reads them."""
    table = Table(
        "group", "tensors", "parameters", "learning rate", "betas", "eps", "weight decay", title="Parameter groups"
    )
    for group in groups:
        count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in group["params"])
        rate, betas = f"{group.get('initial_lr', group['lr']):g}", "{:g}, {:g}".format(*group["betas"])
        table.add_row(
            group["name"],
            str(len(group["params"])),
            f"{count:,}",
            rate,
            betas,
            f"{group['eps']:g}",
            f"{group['weight_decay']:g}",
        )
    return table
