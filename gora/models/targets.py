"""Which layers are adapted: `attention`, `all-linear`, names or a regular expression become a list of layers."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gora.errors import InputError
from gora.models.head import in_head
from gora.models.sharding import gather

_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[\w.]+")


def find_targets(model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Resolve the recipe's targets to layers, in the model's order.

    Args:
        model: any transformers model; weights may be on the meta device. A classifier's head is not a target, nor are
            the towers of a model that also reads images or sound: rows are text.
        targets: `attention` (linear layers inside attention blocks), `all-linear` (all of them but the output head),
            one name or several (the full name or its last parts), or a regular expression on full names.
        exclude: names that are left out again.

    Raises:
        InputError: a name or the expression matches no linear layer; the linear layers there are get listed.
    """
    of_head, outside = in_head(model), _outside_of_language(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and not of_head(name) and name not in outside
    }
    chosen = _choose(linear, model, targets)
    left_out = set(_by_names(linear, exclude, "adapter.exclude"))
    found = {name: module for name, module in linear.items() if name in chosen and name not in left_out}
    _refuse_tied(model, found)
    if not found:
        raise InputError(f"adapter.targets {targets!r} leaves no layer to adapt. {_kinds(linear)}")
    return found


def towers(model: nn.Module) -> dict[str, int]:
    """Parts of a model outside of its language model, by name, with how many linear layers each has."""
    counts: dict[str, int] = {}
    for name in sorted(_outside_of_language(model)):
        tower = ".".join(name.split(".")[:2])
        counts[tower] = counts.get(tower, 0) + 1
    return counts


def expert_share(model: nn.Module) -> float:
    """Share of the weights that lie in 3-D parameters, which hold the experts of a mixture and are not layers."""
    sizes = [(parameter.numel(), parameter.ndim) for parameter in model.parameters()]
    return sum(size for size, dimensions in sizes if dimensions == 3) / max(1, sum(size for size, _ in sizes))


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, also where its weight is turned (Conv1D) or packed (quantised)."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    rows, columns = module.weight.shape  # type: ignore[misc, union-attr]
    return columns, rows  # type: ignore[return-value]


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in); a quantised one is dequantised."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(module)
    return as_out_in(module, gather(weight).detach())


def as_out_in(module: nn.Module, matrix: Tensor) -> Tensor:
    """View a matrix that is shaped like the layer's weight as (out, in)."""
    return matrix.T if isinstance(module, Conv1D) else matrix


def kind_of(name: str) -> str:
    """Last part of a layer's name, such as `q_proj`: layers of one kind do the same work in different blocks."""
    return name.rpartition(".")[2]


def _refuse_tied(model: nn.Module, found: dict[str, nn.Module]) -> None:
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, module in found.items():
        if owner := embeddings.get(id(module.weight)):
            raise InputError(
                f"adapter.targets: the weight of {name} is also that of {owner}. An adapter on it could not be merged; "
                "put it into adapter.exclude."
            )


def _outside_of_language(model: nn.Module) -> set[str]:
    """Linear layers of the towers and projectors of a model that reads more than text; none of a plain model."""
    parts = set(getattr(getattr(model, "config", None), "sub_configs", None) or ())
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if "text_config" not in parts or parts == {"text_config"} or head is None:
        return set()
    language: nn.Module = model.get_decoder()  # type: ignore[operator]
    inside = {id(module) for module in language.modules()}
    return {
        name
        for name, module in model.named_modules()
        if _is_linear(module) and id(module) not in inside and module is not head
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _choose(linear: dict[str, nn.Module], model: nn.Module, targets: str | Sequence[str]) -> set[str]:
    if targets == "all-linear":
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return {name for name, module in linear.items() if module is not head}
    if targets == "attention":
        return {name for name in linear if _ATTENTION.search(name)}
    if isinstance(targets, str) and not _PLAIN_NAME.fullmatch(targets):
        return _by_expression(linear, targets)
    return set(_by_names(linear, [targets] if isinstance(targets, str) else targets, "adapter.targets"))


def _by_expression(linear: dict[str, nn.Module], expression: str) -> set[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise InputError(f"adapter.targets: {expression!r} is not a regular expression: {error}.") from None
    chosen = {name for name in linear if pattern.fullmatch(name)}
    if not chosen:
        raise InputError(f"adapter.targets: no linear layer's full name matches {expression!r}. {_kinds(linear)}")
    return chosen


def _by_names(linear: dict[str, nn.Module], wanted: Sequence[str], key: str) -> list[str]:
    chosen: list[str] = []
    problems = []
    for end in wanted:
        matches = [name for name in linear if name == end or name.endswith(f".{end}")]
        if not matches:
            near = get_close_matches(end, sorted({kind_of(name) for name in linear}), n=1)
            problems.append(f"{end!r} names no linear layer" + (f"; did you mean {near[0]!r}?" if near else ""))
        chosen += matches
    if problems:
        raise InputError(f"{key}: {_kinds(linear)}", problems)
    return chosen


def _kinds(linear: dict[str, nn.Module]) -> str:
    return f"Linear layers of this model: {', '.join(sorted({kind_of(name) for name in linear}))}."
