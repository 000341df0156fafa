"""`train.kernels`: what computes a model's blocks and its loss."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from gora.errors import InputError
from gora.models.liger import use_liger
from gora.models.supervised_head import use_supervised_head

_NO_LIGER = "train.kernels: liger cannot be used: {}. Give `auto`, `fused` or `compile`."


def refuse_kernels(wanted: str, device: torch.device) -> None:
    """Refuse Liger's kernels, asked for by name, where they cannot run; raises InputError."""
    if wanted == "liger" and (reason := _why_not_liger(device)):
        raise InputError(_NO_LIGER.format(reason))


def _why_not_liger(device: torch.device) -> str:
    if device.type != "cuda":
        return "it needs a GPU"
    return "" if find_spec("liger_kernel") else "the package liger-kernel is not installed"


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
        reason = _why_not_liger(model.device) or use_liger(model, rows, context)
        if reason and wanted == "liger":
            raise InputError(_NO_LIGER.format(reason))
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
