"""Which layers are adapted: `attention`, `all-linear`, names or a regular expression become a list of layers."""

import re
import time
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

import regex
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gora.errors import InputError
from gora.models.experts import Expert, FusedExperts, Matrix, Target, fused_experts
from gora.models.head import in_head
from gora.models.language import in_adapted_part
from gora.models.sharding import gather

_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_PATIENCE = 5.0
_PLAIN_NAME = re.compile(r"[\w.]+")


def find_targets(
    model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str] = (), *, beside_experts: bool = False
) -> dict[str, nn.Module]:
    """Resolve the recipe's targets to linear layers, in the model's order.

    Args:
        model: any transformers model; weights may be on the meta device. A classifier's head is no target, nor are
            layers of towers beside what is adapted: for images and sound of a language model, for text of CLIP.
        targets: `attention` (linear layers inside attention blocks, by their names, else by their blocks' classes),
            `all-linear` or `auto` (all of them but the output head),
            one name or several (the full name or its last parts), or a regular expression on full names.
        exclude: names that are left out again.
        beside_experts: `exclude` may name fused experts as well, of which `find_experts` knows.

    Raises:
        InputError: a name or the expression matches no linear layer; the linear layers there are get listed.
    """
    of_head, of_part = in_head(model), in_adapted_part(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and not of_head(name) and of_part(name)
    }
    chosen = _choose(linear, model, targets)
    known = [*linear, *(fused_experts(model) if beside_experts else ())]
    left_out = set(_by_names(known, exclude, "adapter.exclude"))
    found = {name: module for name, module in linear.items() if name in chosen and name not in left_out}
    if not found:
        raise InputError(f"adapter.targets {targets!r} leaves no layer to adapt. {_kinds(linear)}")
    return found


def find_experts(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, FusedExperts]:
    """The fused experts of the language model, by the full names of their parameters, in the model's order.

    Args:
        model: any transformers model; weights may be on the meta device.
        exclude: names that are left out: the full name or its last parts.

    Raises:
        InputError: there are none, or none are left.
    """
    of_part = in_adapted_part(model)
    fused = {name: target for name, target in fused_experts(model).items() if of_part(name)}
    found = {name: target for name, target in fused.items() if not any(_named(name, end) for end in exclude)}
    if not found:
        why = "adapter.exclude leaves none of them to adapt" if fused else "this model has no fused experts"
        raise InputError(f"adapter.experts: true, but {why}. Set it to false.")
    return found


def weight_shape(module: Target | Matrix) -> tuple[int, int]:
    """(out, in) of a linear layer, also where its weight is turned (Conv1D) or packed (quantised), or of an expert."""
    if isinstance(module, FusedExperts | Expert):
        return module.shape
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    rows, columns = module.weight.shape  # type: ignore[misc, union-attr]
    return columns, rows  # type: ignore[return-value]


def whole_shape(target: Target) -> tuple[int, ...]:
    """(out, in) of a linear layer, (experts, out, in) of fused experts."""
    shape = weight_shape(target)
    return (target.count, *shape) if isinstance(target, FusedExperts) else shape


def weight_of(module: Matrix) -> Tensor:
    """The weight of a linear layer or an expert as (out, in); a quantised layer's is dequantised."""
    from peft.utils.integrations import dequantize_module_weight

    if isinstance(module, Expert):
        return module.of(module.weight.detach())
    weight: Tensor = dequantize_module_weight(module)
    held: Any = module.weight
    if getattr(held, "CB", None) is not None and held.SCB is None:
        # PEFT has put 8-bit values back without their scales, which the layer holds already: its next forward would
        # take the values and lose the scales.
        held.CB = None
    return as_out_in(module, gather(weight).detach())


def as_out_in(module: Matrix, matrix: Tensor) -> Tensor:
    """View what is shaped like the layer's weight, or like that of all experts, as the (out, in) of this one."""
    if isinstance(module, Expert):
        return module.of(matrix)
    return matrix.T if isinstance(module, Conv1D) else matrix


def kind_of(name: str) -> str:
    """Last part of a layer's name, such as `q_proj`: layers of one kind do the same work in different blocks."""
    return name.rpartition(".")[2]


def named_for_attention(name: str) -> bool:
    """Whether a layer's full name says that it is in an attention block."""
    return _ATTENTION.search(name) is not None


def is_linear(module: nn.Module) -> bool:
    """Whether a layer multiplies by a matrix of its own and may be adapted."""
    return isinstance(module, nn.Linear | Conv1D)


def _choose(linear: dict[str, nn.Module], model: nn.Module, targets: str | Sequence[str]) -> set[str]:
    if targets in ("all-linear", "auto"):
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return {name for name, module in linear.items() if module is not head}
    if targets == "attention":
        blocks = _attention_classes(model)
        return {name for name in linear if named_for_attention(name)} or {n for n in linear if n.startswith(blocks)}
    if isinstance(targets, str) and not _PLAIN_NAME.fullmatch(targets):
        return _by_expression(linear, targets)
    return set(_by_names(linear, [targets] if isinstance(targets, str) else targets, "adapter.targets"))


def _attention_classes(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of names inside modules of a class named for attention; some families name them by their place."""
    return tuple(f"{name}." for name, module in model.named_modules() if type(module).__name__.endswith("Attention"))


def _by_expression(linear: dict[str, nn.Module], expression: str) -> set[str]:
    end = time.monotonic() + _PATIENCE
    try:
        pattern = regex.compile(expression)
        # The search of Python's own module cannot be ended, and takes longer than the world with some expressions.
        chosen = {name for name in linear if pattern.fullmatch(name, timeout=max(end - time.monotonic(), 0.01))}
    except regex.error as error:
        raise InputError(f"adapter.targets: {expression!r} is not a regular expression: {error}.") from None
    except TimeoutError:
        raise InputError(
            f"adapter.targets: {expression[:60]!r} takes too long on the names of this model's layers. Write it "
            "without repetitions inside repetitions, or list the names."
        ) from None
    if not chosen:
        raise InputError(f"adapter.targets: no linear layer's full name matches {expression!r}. {_kinds(linear)}")
    return chosen


def _by_names(linear: Collection[str], wanted: Sequence[str], key: str) -> list[str]:
    chosen: list[str] = []
    problems = []
    for end in wanted:
        matches = [name for name in linear if _named(name, end)]
        if not matches:
            near = get_close_matches(end, sorted({kind_of(name) for name in linear}), n=1)
            problems.append(f"{end!r} names no linear layer" + (f"; did you mean {near[0]!r}?" if near else ""))
        chosen += matches
    if problems:
        raise InputError(f"{key}: {_kinds(linear)}", problems)
    return chosen


def _named(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _kinds(linear: Collection[str]) -> str:
    if not linear:
        return "This model has no linear layer that could be adapted."
    return f"Linear layers of this model: {', '.join(sorted({kind_of(name) for name in linear}))}."
