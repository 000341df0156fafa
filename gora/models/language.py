"""Which part of a model reads and writes text: towers for images and sound, and what joins them to it, are no part."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from gora.models.vision import in_vision, is_two_towers

_SENSES = re.compile(r"vision|visual|image|video|audio|speech|sound|acoustic", re.IGNORECASE)


def in_adapted_part(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module, by its name, belongs to what is adapted: the language model, or of CLIP the tower that sees.

    Args:
        model: not wrapped; weights may be on the meta device.
    """
    return in_vision(model) if is_two_towers(model) else in_language(model)


def in_language(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module, by its name, belongs to the language model.

    All of them do, unless the configuration of a model that makes text or classifies it has a part for images or sound.
    Then it is the decoder, and the encoder of text where there is one.

    Args:
        model: not wrapped; weights may be on the meta device.
    """
    parts, towers = _parts(model)

    def belongs(name: str) -> bool:
        inside = not parts or name.startswith(parts)
        return inside and not name.startswith(towers)

    return belongs


def senses(model: nn.Module) -> bool:
    """Whether the model has parts for images or sound beside its language model."""
    config = getattr(model, "config", None)
    makes_text = getattr(model, "can_generate", lambda: False)()
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    if not isinstance(config, PreTrainedConfig) or not (makes_text or classifies):
        return False
    return any(_SENSES.search(key) and getattr(config, key, None) is not None for key in config.sub_configs)


def _parts(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Beginnings of names inside the language model, none for all of it, and of those in towers."""
    if not senses(model):
        return (), ()
    root: Any = model
    names = {module: name for name, module in model.named_modules()}
    wanted = [root.get_decoder()] + ([root.get_encoder()] if root.config.is_encoder_decoder else [])
    found = [names.get(part, "") for part in wanted]
    parts = () if "" in found else tuple(f"{name}." for name in found)
    towers = tuple(
        f"{name}."
        for module, name in names.items()
        if isinstance(module, PreTrainedModel)
        and _SENSES.search(type(module.config).__name__)
        # Of a model for sound, the whole is named after it, too.
        and type(module.config) is not type(root.config)
    )
    return parts, towers
