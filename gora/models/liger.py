"""Liger's kernels for norms, rotary positions and gated activations, where Liger knows the model."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel

_ROTARY = "apply_rotary_pos_emb"


def use_liger(model: PreTrainedModel, rows: list[list[int]], context: AbstractContextManager[Any]) -> str:
    """Have a model on a GPU compute with Liger's kernels, and see that it computes the same; else leave it as it was.

    Args:
        model: the model.
        rows: token ids; the first tokens of each are used.
        context: arithmetic of the passes.

    Returns:
        Why it does not; empty where it does.
    """
    try:
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    except ImportError as error:
        return f"liger-kernel cannot be imported ({error})"
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"Liger does not know {model.config.model_type}"
    width = min(32, *map(len, rows))
    ids = torch.tensor([row[:width] for row in rows[:2]], device=model.device)
    training = model.training
    code = sys.modules[type(model).__module__]
    rotary = getattr(code, _ROTARY, None)
    forwards = {id(module): vars(module).get("forward") for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), context:
            before = model(input_ids=ids, use_cache=False).logits.float()
            # The loss has a way of its own, which keeps the logits of supervised tokens only.
            _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
            after = model(input_ids=ids, use_cache=False).logits.float()
        reason = "" if (after - before).abs().mean() <= 0.05 * before.std() else "its logits are others with Liger"
    except Exception as error:  # a version of Liger may not fit one of transformers
        reason = f"Liger fails ({type(error).__name__})"
    finally:
        model.train(training)
    if reason:
        for module in model.modules():
            vars(module).pop("forward", None)
            if (own := forwards.get(id(module))) is not None:
                module.forward = own
        if rotary is not None:
            setattr(code, _ROTARY, rotary)
    return reason
