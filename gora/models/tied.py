"""Linear layers whose weight an adapter cannot have for itself: it is used elsewhere too, or computed from others.

PEFT puts an adapter on a layer in one place. Where the layer or its weight has a second one, as in a block of Zamba
that stands at several depths, adapters of all places would be merged into one weight, so that each place got them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from torch import nn


def reasons_against(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Which of these layers have no weight of their own, and why, in words that follow "cannot be adapted".

    Args:
        model: any model with its weights tied; they may be on the meta device.
        names: linear layers of it, by full name.
    """
    modules = dict(model.named_modules())
    users: dict[int, list[nn.Module]] = defaultdict(list)
    places: Counter[int] = Counter()
    for module in modules.values():
        for value in module._parameters.values():
            if value is not None:
                users[id(value)].append(module)
        # A block with two names is one module still, and PEFT replaces the layers inside it once.
        places.update(id(part) for part in module._modules.values())
    found = {}
    for name in names:
        layer = modules[name]
        weight = layer._parameters.get("weight")
        if weight is None:
            found[name] = "their weights are computed from other parameters"
        elif any(isinstance(user, nn.Embedding) for user in users[id(weight)]):
            found[name] = "their weights are also the embeddings"
        elif len(users[id(weight)]) > 1 or places[id(layer)] > 1:
            found[name] = "their weights are used in several places of the model"
    return found
