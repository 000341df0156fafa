"""How the micro-batches of a gradient pass are recorded on a GPU, where that is possible and of use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch import no_grad as without_gradients

from gora.gradients.attach import Attachment
from gora.gradients.replay import LONGEST, MOST, Recorder, Replay
from gora.gradients.sums import DeviceSums, Sums
from gora.models.tokenizer import embeddings_of
from gora.planning.micro_batches import MicroBatches
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runtime.console import output

_PEAK = 1e15
"""Operations of a fast GPU in a second."""
_LOGIT_BYTES = 12
"""Of a logit: in bfloat16 and in float32, and its gradient in both."""


def recorder_of(
    context: RunContext,
    attachment: Attachment,
    batches: MicroBatches,
    sums: Sums,
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
) -> Recorder | None:
    """What records the passes of micro-batches on a GPU, where that is possible and may be of use."""
    tokens = batches.most_tokens
    possible = (
        context.device.type == "cuda"
        and isinstance(sums, DeviceSums)
        and attachment.all_tapped
        and context.source.causal
        and not recomputes_activations(context.recipe.train)
        and not context.engine.shards_weights
    )
    # With steps auto, few may come.
    if not possible or tokens > (LONGEST if context.recipe.gora.steps == "auto" else MOST):
        return None

    def record() -> Callable[[int], Tensor]:
        if not attachment.all_tapped:
            raise RuntimeError("some layers are left to autograd")
        if tokens > LONGEST and not _has_room(context, tokens):
            raise RuntimeError(f"the logits of {tokens:,} tokens would take too much of the memory")
        _check_padding_changes_nothing(batches, loss_of)
        recorded = Replay(attachment, sums, loss_of, batches.fixed(0))
        output.log(f"recorded  micro-batches padded to {tokens:,} tokens, as a CUDA graph")
        return lambda index: recorded(batches.fixed(index))

    # Two products for each weight and token in both passes.
    least = 4 * tokens * sum(value.numel() for value in attachment.model.parameters()) / _PEAK
    return Recorder(record, least, lambda words: output.log(f"recorded  {words}"))


def _has_room(context: RunContext, tokens: int) -> bool:
    """Whether a recorded pass, in which the logits of all tokens are computed, leaves most of the memory free."""
    free, _ = torch.cuda.mem_get_info(context.device)
    free += torch.cuda.memory_reserved(context.device) - torch.cuda.memory_allocated(context.device)
    return tokens * (embeddings_of(context.source.config) or 0) * _LOGIT_BYTES < free / 4


def _check_padding_changes_nothing(batches: MicroBatches, loss_of: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
    with without_gradients():
        masked, padded = loss_of(batches[0]).item(), loss_of(batches.fixed(0)).item()
    if not math.isclose(masked, padded, rel_tol=5e-3):
        raise RuntimeError(f"padding changes the loss from {masked} to {padded}")
