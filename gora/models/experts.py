"""Fused experts of a mixture: one parameter of three dimensions holds the weight of every expert of a block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gora.errors import InputError

_EXPERT = re.compile(r"expert", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class FusedExperts:
    """A parameter of shape (experts, out, in), or (experts, in, out) in a module that says `is_transposed`.

    That is how PEFT reads it. Where a module has them turned and does not say so (Llama 4), A and B change sides.

    Attributes:
        holder: the module that has the parameter.
        parameter: its name there.
    """

    holder: nn.Module
    parameter: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        weight: nn.Parameter = getattr(self.holder, self.parameter)
        return weight

    @property
    def count(self) -> int:
        """How many experts there are."""
        return int(self.weight.shape[0])

    @property
    def turned(self) -> bool:
        """Whether each expert's matrix is stored as (in, out)."""
        return bool(getattr(self.holder, "is_transposed", False))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of one expert."""
        _, rows, columns = self.weight.shape
        return (columns, rows) if self.turned else (rows, columns)


@dataclass(frozen=True, eq=False)
class Expert:
    """One of several fused experts.

    Attributes:
        fused: all of them.
        index: which one.
    """

    fused: FusedExperts
    index: int

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that holds it, with all others."""
        return self.fused.weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.fused.shape

    def of(self, fused: Tensor) -> Tensor:
        """View this expert's part of a tensor that is shaped like the parameter, as (out, in)."""
        own = fused[self.index]
        return own.T if self.fused.turned else own


Target = nn.Module | FusedExperts
"""What may be adapted: a linear layer, or the fused experts of a block, which get one rank."""
Matrix = nn.Module | Expert
"""What has a mean gradient of its own: a linear layer, or one expert."""


def fused_experts(model: nn.Module) -> dict[str, FusedExperts]:
    """All fused experts of a model under the full names of their parameters, in the model's order."""
    return {
        f"{name}.{parameter}": FusedExperts(module, parameter)
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear | nn.Embedding | _ConvNd)
        and _EXPERT.search(f"{name}.{type(module).__name__}")
        for parameter, value in module.named_parameters(recurse=False)
        # PEFT takes a single expert for an ordinary matrix, whichever way it lies.
        if value.dim() == 3 and value.shape[0] > 1
    }


def target_of(model: nn.Module, name: str) -> Target:
    """A target by its full name: that of a module, or of a parameter of fused experts.

    Raises:
        InputError: the experts are packed.
    """
    holder, _, own = name.rpartition(".")
    module = model.get_submodule(holder)
    value: Tensor | nn.Module = getattr(module, own)
    if isinstance(value, nn.Module):
        return value
    if not value.is_floating_point() or value.dim() != 3:
        held = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        raise InputError(
            f"adapter.experts: {name} is held in few bits ({held}), and cannot be adapted. Set it to false, or name "
            "the model in whole weights."
        )
    return FusedExperts(module, own)


def matrices_of(targets: Mapping[str, Target]) -> dict[str, Matrix]:
    """Every linear layer under its name, and every expert under that of its group and its number (`...down_proj.3`)."""
    found: dict[str, Matrix] = {}
    for name, target in targets.items():
        if isinstance(target, FusedExperts):
            found |= {member: Expert(target, index) for index, member in enumerate(member_names(name, target.count))}
        else:
            found[name] = target
    return found


def member_names(name: str, count: int) -> list[str]:
    """Names of the experts of a group."""
    return [f"{name}.{index}" for index in range(count)]


def expert_counts(targets: Mapping[str, Target]) -> dict[str, int]:
    """How many experts each group has, by its name; linear layers are left out."""
    return {name: target.count for name, target in targets.items() if isinstance(target, FusedExperts)}
