"""Activation checkpointing: recomputing a block's activations in the backward pass instead of keeping them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gora.models.rows_apart import in_recomputation

_NON_REENTRANT = {"use_reentrant": False, "context_fn": in_recomputation}


def recompute_activations(model: nn.Module, enabled: bool) -> None:
    """Switch activation checkpointing on or off; transformers 5.23 renamed the methods."""
    verb = "enable" if enabled else "disable"
    switch = getattr(model, f"activation_checkpointing_{verb}", None) or getattr(
        model, f"gradient_checkpointing_{verb}"
    )
    switch(_NON_REENTRANT) if enabled else switch()


@contextmanager
def recomputing_activations(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Inside the block, recompute each block's activations in the backward pass, with dropout off.

    Transformers recomputes only in blocks that are in training mode. The mode is set on those blocks alone, not on
    the layers inside, so that dropout and its randomness stay out of the gradients.
    """
    if not enabled:
        yield
        return
    recompute_activations(model, True)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.training = True
    try:
        yield
    finally:
        for block in blocks:
            block.training = False
        recompute_activations(model, False)
