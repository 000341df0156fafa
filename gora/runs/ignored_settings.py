"""What a user's Accelerate file says beside the engine: where the recipe or the launcher says it otherwise."""

from __future__ import annotations

from typing import Any

from gora.recipe.schema import Recipe
from gora.runtime.engine import Engine
from gora.runtime.precision import Precision
from gora.runtime.world import World

_ON = ("dynamo_config", "fp8_config", "megatron_lm_config", "parallelism_config", "tp_config")


def ignored_settings(engine: Engine, recipe: Recipe, world: World, precision: Precision) -> list[str]:
    """Settings of the file that differ from what runs, each with what runs instead.

    Args:
        engine: with what its file says beside it.
        recipe: says batches, clipping and precision.
        world: the processes.
        precision: as it was resolved.
    """
    train = recipe.train
    runs: dict[str, Any] = {
        "mixed_precision": {"fp32": "no"}.get(precision, precision),
        "num_processes": world.size,
        "num_machines": world.size // world.local_size,
    }
    if train.micro_batch_size != "auto":
        runs["gradient_accumulation_steps"] = train.batch_size // (train.micro_batch_size * world.size)
    runs["gradient_clipping"] = train.max_grad_norm or 0.0
    found = [
        f"{key}: {engine.unread[key]} ({value} runs)"
        for key, value in runs.items()
        if key in engine.unread and not _same(engine.unread[key], value)
    ]
    return found + [key for key in _ON if engine.unread.get(key)]


def _same(written: Any, runs: Any) -> bool:
    if written in (None, "auto"):
        return True
    # YAML reads a bare `no` as false, and files also hold numbers as text.
    text = "no" if written is False else str(written)
    try:
        return float(text) == float(runs)
    except ValueError:
        return text == str(runs)
