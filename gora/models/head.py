"""The head of a classifier: the modules that stand beside its pre-trained base, which are trained in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from gora.errors import InputError
from gora.models.vision import head_for

_PEFT_PREFIX = "base_model.model."
_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a classifier of texts or images beside its base, by name; empty for every other model.

    Transformers keeps the pre-trained base of a model under one name (`base_model_prefix`): what else has parameters is
    the head, such as BERT's `classifier`, DistilBERT's `pre_classifier` and `classifier`, and a decoder's `score`.
    BERT's pooler is a part of the base.

    Args:
        model: wrapped by PEFT or not; weights may be on the meta device.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not type(base).__name__.endswith(_CLASSIFIERS):
        return {}
    beside = ((name, module) for name, module in base.named_children() if name != base.base_model_prefix)
    return {name: module for name, module in beside if next(module.parameters(), None) is not None}


def in_head(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module or parameter, by its name in this model, belongs to the head."""
    names = tuple(head_modules(model))
    starts = tuple(f"{name}." for name in names)

    def belongs(name: str) -> bool:
        inner = name.removeprefix(_PEFT_PREFIX)
        return inner in names or inner.startswith(starts)

    return belongs


def refuse_ambiguous_head(model: nn.Module) -> None:
    """Refuse a classifier with other modules that PEFT takes for its head, because their names end like the head's.

    Args:
        model: not wrapped; weights may be on the meta device.

    Raises:
        InputError: naming them.
    """
    heads, of_head = tuple(head_modules(model)), in_head(model)
    others = [name for name, _ in model.named_modules() if heads and name.endswith(heads) and not of_head(name)]
    if others:
        kind = head_for(type(model).__name__) or "classification"
        raise InputError(
            f"model.head: {kind}: PEFT knows the head ({', '.join(heads)}) by the end of its name, and would "
            f"train {', '.join(others[:3])} with it. Give another model, or adapter.method: full."
        )


def settle_padding(model: nn.Module, padding: int) -> None:
    """Tell a classifier which id is padding, where its configuration does not say.

    A decoder's head reads the last token before the padding, and refuses several rows without knowing it.
    """
    config: Any = model.config
    if head_modules(model) and getattr(config, "pad_token_id", padding) is None:
        config.pad_token_id = padding


def train_head(model: nn.Module) -> None:
    """Let the head learn, in float32; under PEFT its copy does, and the base keeps what it began with."""
    for module in head_modules(model).values():
        copies: Any = getattr(module, "modules_to_save", None)
        for trained in [module] if copies is None else copies.values():
            trained.float().requires_grad_(True)
            trained.register_forward_pre_hook(_in_own_type)


def _in_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The base may compute in a shorter type than the head is trained in."""
    dtype = next(module.parameters()).dtype
    return tuple(each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)
