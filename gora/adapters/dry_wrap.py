"""Which layers will be adapted: settled by wrapping the empty model as training will wrap the loaded one."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gora.errors import GoraError, InputError
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.methods.base import wrap_with
from gora.models.experts import Target, fused_experts, target_of
from gora.models.head import refuse_ambiguous_head
from gora.models.language import in_adapted_part
from gora.models.load import empty_model
from gora.models.source import Source
from gora.models.targets import find_experts, find_targets, is_linear, kind_of, weight_shape
from gora.models.tied import reasons_against
from gora.models.vision import is_two_towers
from gora.recipe.schema import AdapterSection

_OF_LANGUAGE = "rows are text, so the language model alone is adapted"
_OF_VISION = "the texts of classes stay as they are, so the vision tower alone is adapted"
_BROAD = ("attention", "all-linear", "auto")
_ANY_RANK = 8
"""For a wrapping that is only tried, before the rank is known."""
_LEAST_SHARE = 0.01
_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The layers that training adapts, and what stays beside them.

    Attributes:
        layers: names, in the model's order.
        experts: names of the parameters that hold fused experts, where the recipe asks for them.
        left_out: how many layers of each kind cannot be adapted, and why; of `attention`, `all-linear` and `auto` only.
        outside: how many linear layers each tower and projector beside the part that is adapted has.
        why_outside: why those are not adapted, in words.
        unreached: share of the language model's weights that are no linear layer's, no embedding's and not adapted.
        unreached_kinds: what those are called.
        could_reach: whether `adapter.experts` would reach them.
    """

    layers: tuple[str, ...]
    experts: tuple[str, ...] = ()
    left_out: Mapping[str, str]
    outside: Mapping[str, int]
    unreached: float = 0.0
    unreached_kinds: tuple[str, ...] = ()
    could_reach: bool = False
    why_outside: str = _OF_LANGUAGE

    def of(self, model: nn.Module) -> dict[str, Target]:
        """What is adapted, in a model that is not wrapped."""
        return {name: target_of(model, name) for name in (*self.layers, *self.experts)}

    def lines(self) -> list[str]:
        """What a user has to know beside the list of targets."""
        found = []
        if self.outside:
            parts = ", ".join(f"{part} ({count} linear layers)" for part, count in self.outside.items())
            found.append(f"outside   {self.why_outside}, not {parts}")
        if self.left_out:
            kinds = "; ".join(f"{kinds} ({reason.rstrip('.')})" for kinds, reason in self.left_out.items())
            found.append(f"left out  {kinds}, which cannot be adapted in this model")
        return found

    def warning(self) -> str | None:
        """The share that no target reaches, where it is worth a line."""
        if self.unreached < _LEAST_SHARE:
            return None
        kinds = ", ".join(self.unreached_kinds)
        told = f"No target reaches {self.unreached:.0%} of the weights, which are in no linear layer ({kinds})."
        return told + (" adapter.experts: true adapts fused experts." if self.could_reach else "")


def choose_layers(adapter: AdapterSection, source: Source) -> Chosen:
    """Resolve the recipe's targets and see that PEFT adapts exactly those.

    Raises:
        InputError: a layer that was asked for by name cannot be adapted, or none is left.
    """

    def make() -> PreTrainedModel:
        return empty_model(source)

    model = make()
    found = find_targets(model, adapter.targets, adapter.exclude, beside_experts=adapter.experts)
    experts = tuple(find_experts(model, adapter.exclude)) if adapter.experts else ()
    left_out: dict[str, str] = {}
    layers = list(found)
    if METHODS[adapter.method].saved_as == "adapter":
        refuse_ambiguous_head(model)
        layers, left_out = _adaptable(adapter, make, found, reasons_against(model, found))
        if experts and (reason := _refusal(adapter, make(), layers, experts)):
            raise InputError(f"adapter.experts: the experts of this model cannot be adapted: {reason}")
    unreached, kinds = _unreached(model, experts)
    return Chosen(
        layers=tuple(layers),
        experts=experts,
        left_out=left_out,
        outside=_outside(model),
        unreached=unreached,
        unreached_kinds=kinds,
        could_reach=not adapter.experts and METHODS[adapter.method].supports_experts and bool(fused_experts(model)),
        why_outside=_OF_VISION if is_two_towers(model) else _OF_LANGUAGE,
    )


def leave_out(chosen: Chosen, adapter: AdapterSection, reasons: Mapping[str, str]) -> Chosen:
    """What is left without layers on which, as the loaded model shows, an adapter would not do what it should.

    Methods that train the weights themselves reach those too.

    Raises:
        InputError: one of them was asked for by name, or no other is left.
    """
    if not reasons or METHODS[adapter.method].saved_as != "adapter":
        return chosen
    rest = [name for name in chosen.layers if name not in reasons]
    left_out = _left_out(adapter, rest, reasons)
    return replace(chosen, layers=tuple(rest), left_out={**chosen.left_out, **left_out})


def _adaptable(
    adapter: AdapterSection,
    make: Callable[[], PreTrainedModel],
    found: Mapping[str, nn.Module],
    tied: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """The layers that can be adapted, and those that cannot, by reason; refused where one was asked for by name."""
    odd = [name for name, layer in found.items() if name not in tied and not _returns_its_product(layer)]
    reasons = {**tied, **dict.fromkeys(odd, "they return more than one tensor")}
    rest = [name for name in found if name not in reasons]
    if rest and (reason := _refusal(adapter, make(), rest)):
        # Kinds go in and out together: one that PEFT refuses or leads elsewhere says so when it is alone, too.
        for kind in dict.fromkeys(map(kind_of, rest)):
            of_kind = [name for name in rest if kind_of(name) == kind]
            if alone := _refusal(adapter, make(), of_kind):
                reasons |= dict.fromkeys(of_kind, alone)
        left = [name for name in rest if name not in reasons]
        if len(left) == len(rest) or (left and (reason := _refusal(adapter, make(), left))):
            raise InputError(f"adapter.targets {adapter.targets!r}: these layers cannot be adapted together: {reason}")
        rest = left
    return rest, _left_out(adapter, rest, reasons)


def _left_out(adapter: AdapterSection, rest: Sequence[str], reasons: Mapping[str, str]) -> dict[str, str]:
    """Why layers are left out, by their counted kinds; refused where one was asked for by name, or none is left."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    left_out = {_counted(names): why for why, names in by_reason.items()}
    if not reasons or (adapter.targets in _BROAD and rest):
        return left_out
    problems = [f"{kinds}: {why}" for kinds, why in left_out.items()]
    raise InputError(
        f"adapter.targets {adapter.targets!r}: {len(reasons)} of {len(reasons) + len(rest)} layers cannot be adapted. "
        "Name others, or put them into adapter.exclude.",
        problems,
    )


def _refusal(
    adapter: AdapterSection, model: PreTrainedModel, names: Iterable[str], experts: tuple[str, ...] = ()
) -> str | None:
    """Why PEFT cannot adapt exactly these layers and fused experts of an empty model, in one line."""
    rank = _ANY_RANK if adapter.rank == "auto" else adapter.rank
    settings = AdapterSettings(rank=rank, alpha=adapter.alpha, dropout=adapter.dropout, dora=adapter.dora)
    targets = {name: model.get_submodule(name) for name in names}
    wrapping = Wrapping(targets=targets, experts=experts, settings=settings, steps=_STEPS)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = wrap_with(model, METHODS[adapter.method].config(wrapping))
            lost = _lost_on_loading(wrapped)
    except GoraError as error:
        return str(error)
    except Exception as error:  # whatever PEFT finds wrong with a model
        return f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return f"PEFT saves them under names that it does not load again: {', '.join(lost[:2])}" if lost else None


def _lost_on_loading(wrapped: PeftModel) -> list[str]:
    """Names of a saved adapter that PEFT does not find again: it renames some as weights of older checkpoints."""
    saved = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    loaded: Any = set_peft_model_state_dict(wrapped, saved)
    return sorted(loaded.unexpected_keys)


@torch.no_grad()
def _returns_its_product(layer: nn.Module) -> bool:
    """Whether a layer returns one tensor (..., out); subclasses of Linear, such as routers, may return anything."""
    if type(layer).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    rows, columns = weight_shape(layer)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    try:
        result = layer(torch.empty(2, columns, dtype=weight.dtype, device="meta"))
    except Exception:  # code that does not run without values says nothing about what it returns
        return False
    return isinstance(result, Tensor) and result.shape == (2, rows)


def _outside(model: nn.Module) -> dict[str, int]:
    belongs = in_adapted_part(model)
    if belongs("") and all(belongs(name) for name, _ in model.named_modules()):
        return {}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [name for name, layer in model.named_modules() if is_linear(layer) and layer is not head]
    beside = [name for name in names if not belongs(name)]
    depth = 2 if all(name.startswith("model.") for name in beside) else 1
    return dict(Counter(".".join(name.split(".")[:depth]) for name in beside))


def _unreached(model: nn.Module, experts: Iterable[str]) -> tuple[float, tuple[str, ...]]:
    """Share of the matrices of the language model that are neither a linear layer's nor an embedding's; their kinds.

    Experts that are adapted count as reached.
    """
    reached = set(experts)
    belongs = in_adapted_part(model)
    sizes: Counter[str] = Counter()
    total = 0
    for name, module in model.named_modules():
        if not belongs(f"{name}."):
            continue
        for own, value in module.named_parameters(recurse=False):
            total += math.prod(value.shape)
            if f"{name}.{own}" in reached:
                continue
            if value.dim() > 1 and not (is_linear(module) or isinstance(module, nn.Embedding | _ConvNd)):
                sizes[f"{kind_of(name)}.{own}"] += math.prod(value.shape)
    return sum(sizes.values()) / max(total, 1), tuple(kind for kind, _ in sizes.most_common(3))


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in Counter(map(kind_of, names)).items())
