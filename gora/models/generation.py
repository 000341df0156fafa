"""Where generation ends: models that were trained to stop at a token say so to everybody who loads them."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

# How transformers names a setting that has no effect beside the others, with which it refuses to save all of them.
_WITHOUT_EFFECT = re.compile(r"^- `(\w+)`:", re.MULTILINE)


def trained_generation(model: PreTrainedModel, tokenizer: Any) -> GenerationConfig | None:
    """The base model's settings of generation, which also end at the token that ends every trained answer.

    Args:
        model: generates, or not: None is returned for a classifier.
        tokenizer: the one of the training rows, whose end-of-sequence token they end with; not asked where nothing
            generates.
    """
    own: Any = getattr(model, "generation_config", None)
    if own is None or not model.can_generate():
        return None
    settings = copy.deepcopy(own)
    settings.eos_token_id = _with(tokenizer.eos_token_id, settings.eos_token_id, model.config.eos_token_id)
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Otherwise transformers would make the settings again from the model's configuration.
    settings._from_model_config = False
    try:
        settings.validate(strict=True)
    except ValueError as error:
        for name in _WITHOUT_EFFECT.findall(str(error)):
            setattr(settings, name, None)
    return settings


def settle_generation(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let a model that is about to be saved stop where it was trained to, by both of its configurations."""
    settings = trained_generation(model, tokenizer)
    if settings is not None:
        model.generation_config = settings
        model.config.eos_token_id = settings.eos_token_id


def _with(trained: int | None, *others: int | list[int] | None) -> int | list[int] | None:
    """The trained token and, behind it, those that the model stopped at before."""
    ends = [trained]
    for other in others:
        ends += other if isinstance(other, list) else [other]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    return known if len(known) > 1 else (known[0] if known else None)
