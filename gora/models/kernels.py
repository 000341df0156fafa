"""`train.kernels`: what computes a model's blocks and its loss."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gora.errors import InputError
from gora.models.liger import use_liger
from gora.models.supervised_head import use_supervised_head


def use_kernels(
    model: PreTrainedModel, wanted: str, rows: list[list[int]], context: AbstractContextManager[Any]
) -> list[str]:
    """Have a causal language model compute its loss on supervised tokens alone, and its blocks with Liger's kernels.

    Args:
        model: the model.
        wanted: `auto` (Liger's where they can be used), `fused`, `liger` or `compile`.
        rows: token ids of a few rows, on which it is seen that nothing else comes out.
        context: arithmetic of the passes.

    Returns:
        Lines for the log: what is used, and why something is not.

    Raises:
        InputError: Liger is asked for by name and cannot be used.
    """
    lines = []
    if wanted in ("auto", "liger"):
        reason = use_liger(model, rows, context) if model.device.type == "cuda" else "it needs a GPU"
        if reason and wanted == "liger":
            raise InputError(f"train.kernels: liger cannot be used: {reason}. Give `auto`, `fused` or `compile`.")
        lines.append(f"kernels   without Liger: {reason}" if reason else "kernels   Liger")
    reason = use_supervised_head(model, rows, context)
    lines.append(f"kernels   all logits are computed: {reason}" if reason else "kernels   supervised logits only")
    return lines


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model when it is first run.

    Blocks whose adapters differ in rank, and batches that differ in length, share one compilation.
    """
    torch._dynamo.config.force_parameter_static_shapes = False
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.compile(dynamic=True)
