"""How the micro-batches of a gradient pass are recorded on a GPU, where that is possible and of use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch import no_grad as without_gradients

from gora.gradients.attach import Attachment
from gora.gradients.replay import LONGEST, MOST, Replay, is_faster
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
) -> Callable[[], Callable[[int], Tensor]] | None:
    """How to record the passes of a micro-batch on a GPU, where that is possible and of use."""
    possible = (
        context.device.type == "cuda"
        and isinstance(sums, DeviceSums)
        and attachment.all_tapped
        and context.source.causal
        and not recomputes_activations(context.recipe.train)
        and not context.engine.shards_weights
    )
    if not possible or not _promising(context, batches.most_tokens):
        return None

    def replay() -> Replay:
        _check_padding_changes_nothing(batches, loss_of)
        if batches.most_tokens > LONGEST:
            # Two products for each weight and token in both passes.
            least = 4 * batches.most_tokens * sum(value.numel() for value in attachment.model.parameters()) / _PEAK
            first = batches.indices[: batches.ends(batches.indices)[0]] if batches.share_passes else [0]
            usual = batches.together(first) if len(first) > 1 else batches[0]
            if not is_faster(attachment, loss_of, usual, batches.fixed(0), least, len(first)):
                raise RuntimeError("it would not be faster")
        return Replay(attachment, sums, loss_of, batches.fixed(0))

    def record() -> Callable[[int], Tensor]:
        try:
            recorded = replay()
        except RuntimeError as error:
            output.log(f"recorded  no: {str(error).strip().splitlines()[0]}")
            raise
        output.log(f"recorded  micro-batches padded to {batches.most_tokens:,} tokens, as a CUDA graph")
        return lambda index: recorded(batches.fixed(index))

    return record


def _promising(context: RunContext, tokens: int) -> bool:
    """Whether to try: small micro-batches always, others where many will come and memory is there for their logits."""
    if tokens <= LONGEST:
        return True
    return tokens <= MOST and context.recipe.gora.steps != "auto" and _has_room(context, tokens)


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
