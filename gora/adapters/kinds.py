"""All layers of the kinds that an adapter adapts: some runtimes want a pair of factors for each of them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from gora.models.language import in_language
from gora.models.targets import is_linear, kind_of, weight_shape


def layers_of_kinds(model: nn.Module, adapted: Collection[str]) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of the language model whose last name is that of an adapted layer.

    Args:
        model: the base model; weights may be on the meta device.
        adapted: names of the adapted layers.
    """
    kinds, of_language = {kind_of(name) for name in adapted}, in_language(model)
    return {
        name: weight_shape(module)
        for name, module in model.named_modules()
        if kind_of(name) in kinds and is_linear(module) and of_language(name)
    }


def same_names_elsewhere(model: nn.Module, layers: Collection[str]) -> list[str]:
    """Modules that are named like these layers and are none of them, such as those of a tower for images.

    PEFT would adapt them, too, where it is given the last names alone.
    """
    kinds = {kind_of(name) for name in layers}
    return [name for name, _ in model.named_modules() if kind_of(name) in kinds and name not in layers]
