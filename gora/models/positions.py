"""How many tokens a model takes, by its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

_ABSURD = 10**8


def real_limit(value: Any) -> int | None:
    """A configuration's number of tokens; None where it stands for no limit, as -1 and 10^30 do."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _ABSURD:
        return None
    return int(value)


def positions_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that the positions of a model allow; None where nothing says so.

    Rotary positions that are scaled reach as far as the factor times what the model was trained on, which
    `max_position_embeddings` says in some checkpoints and not in others.
    """
    holder: Any = config if hasattr(config, "max_position_embeddings") else config.get_text_config()
    limit = real_limit(getattr(holder, "max_position_embeddings", None))
    # Biases that grow with the distance (ALiBi) are computed for any length.
    if limit is None or getattr(holder, "alibi", False):
        return None
    return max([limit, *_scaled(holder, limit)])


def _scaled(config: Any, limit: int) -> Iterator[int]:
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        factor, kind = rope.get("factor"), rope.get("rope_type", rope.get("type"))
        if kind in (None, "default") or not isinstance(factor, int | float) or factor <= 1:
            continue
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        yield int(factor * (real_limit(original) or limit))


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions: one set, or one for each type of layer."""
    if not isinstance(parameters, Mapping):
        return
    if any(isinstance(value, Mapping) for value in parameters.values()):
        yield from (value for value in parameters.values() if isinstance(value, Mapping))
    else:
        yield parameters
