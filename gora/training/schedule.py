"""How long training lasts, and how the learning rate runs."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from gora.errors import InputError
from gora.methods import METHODS
from gora.recipe.schema import TrainSection


def optimizer_steps(rows: int | None, settings: TrainSection) -> int:
    """Optimizer steps of a run: a last, smaller batch of an epoch is a step too; `max_steps` may end it earlier.

    Args:
        rows: training examples of an epoch; None for a stream, which `max_steps` alone ends.
        settings: the recipe's section.
    """
    if rows is None:
        assert settings.max_steps is not None
        return settings.max_steps
    steps = math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))
    return min(steps, settings.max_steps or steps)


def refuse_too_few_steps(method: str, steps: int) -> None:
    """Refuse a run that is shorter than its method takes; raises InputError."""
    fewest = METHODS[method].fewest_steps
    if steps < fewest:
        raise InputError(
            f"adapter.method: {method} needs at least {fewest} optimizer steps; this run has {steps}. Raise "
            "train.max_steps or train.epochs, or give another method."
        )


def warmup_steps(settings: TrainSection, steps: int) -> int:
    """How many of the optimizer steps warm up; a single step does not, or its learning rate would be zero."""
    wanted = math.ceil(settings.warmup_ratio * steps) if settings.warmup_steps is None else settings.warmup_steps
    return min(wanted, steps - 1)


def make_schedule(optimizer: Optimizer, settings: TrainSection, steps: int) -> LRScheduler:
    """The recipe's schedule, stepped once an optimizer step; every group follows it from its own peak."""
    warmup = warmup_steps(settings, steps)
    if settings.schedule == "cosine":
        return get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=settings.min_lr_ratio)
    if settings.schedule == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, steps)
    return get_constant_schedule_with_warmup(optimizer, warmup)
