"""Logits where a token is predicted that is trained on, a part of them at a time: the rest is never computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from gora.models.rows_apart import rows_of_pass

Blocks = Callable[[Tensor, Tensor | None, tuple[int, ...]], Tensor]
IGNORED = -100
PREDICTING = "predicting"
"""Key of a causal batch whose value is where a supervised token is predicted from: places in the flat batch, int64."""
PARTS = "parts"
"""Key of a batch that several micro-batches share: how many supervised tokens each has, a tuple of int. Its loss is the
mean of each."""
_BLOCKS = "gora_blocks"
_LOGITS = 2**27
"""Logits held at a time, in float32: 512 MB."""
_LEAST = 128
"""Tokens whose logits are computed at a time, however many each has."""


def use_supervised_head(model: PreTrainedModel, rows: list[list[int]], context: AbstractContextManager[Any]) -> str:
    """Have a causal model compute its loss on supervised tokens alone, where that is the loss it computes itself.

    Seen on two short rows: its logits have to be those of its output layer on the last hidden state, to the bit, and
    its loss their mean cross-entropy. Models that cap or scale logits, or add a loss of their own, keep their way.

    Args:
        model: the model; its `forward` is replaced for calls with labels.
        rows: token ids; the first tokens of each are used.
        context: arithmetic of the passes.

    Returns:
        Why the model keeps its own way; empty where it does not.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if body is model or type(head) is not nn.Linear:
        return "its output layer is not a linear one of its own"
    width = min(16, *map(len, rows))
    ids = torch.tensor([row[:width] for row in rows[:2]], device=head.weight.device)
    training = model.training
    try:
        model.eval()
        with torch.no_grad(), context:
            whole = model(input_ids=ids, labels=ids, use_cache=False)
            hidden = body(input_ids=ids, use_cache=False)[0]
            logits = head(hidden)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    except Exception as error:  # a model may want other arguments, or not give what others do
        return f"it cannot be run in two parts ({type(error).__name__})"
    finally:
        model.train(training)
    if not torch.equal(whole.logits, logits):
        return "its logits are not those of its output layer"
    if abs(whole.loss.item() - loss.item()) > 2e-5 * abs(loss.item()):
        return "its loss is not the cross-entropy of its logits"
    model.forward = MethodType(_forward, model)
    return ""


def has_supervised_head(model: nn.Module) -> bool:
    """Whether a model computes its loss on supervised tokens alone."""
    return getattr(vars(model).get("forward"), "__func__", None) is _forward


@contextmanager
def with_blocks(model: nn.Module, blocks: Blocks) -> Iterator[None]:
    """Inside the block, what computes the last hidden state of rows without padding, in place of the model's own.

    Args:
        model: one with a supervised head.
        blocks: is given ids, and positions and the lengths of the rows where they lie end to end; else None and ().
    """
    model.__dict__[_BLOCKS] = blocks
    try:
        yield
    finally:
        del model.__dict__[_BLOCKS]


def _forward(
    self: PreTrainedModel,
    *args: Any,
    labels: Tensor | None = None,
    predicting: Tensor | None = None,
    parts: tuple[int, ...] = (),
    **inputs: Any,
) -> Any:
    """In place of a causal model's `forward`: with labels, the loss alone.

    `predicting` has the places, of all tokens of the batch, from which a supervised token is predicted. Without it the
    host waits for the device to find them. `parts`: see `PARTS`.
    """
    recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if labels is None or args or recording:
        # A CUDA graph cannot be recorded of shapes that depend on values.
        return type(self).forward(self, *args, labels=labels, **inputs)
    inputs.pop("num_items_in_batch", None)
    blocks, rows = vars(self).get(_BLOCKS), rows_of_pass()
    if blocks is not None and inputs.get("attention_mask") is None:
        hidden = blocks(inputs["input_ids"], inputs.get("position_ids"), rows)
    else:
        hidden = self.base_model(**inputs)[0]
    hidden, targets = hidden.flatten(0, 1), _targets(labels)
    if predicting is None:
        predicting = predicting_places(labels)
    head = self.get_output_embeddings()
    losses = token_losses(head, hidden.index_select(0, predicting), targets[predicting])
    loss = torch.stack([_mean(part) for part in losses.split(parts)]) if parts else _mean(losses)
    return CausalLMOutput(loss=loss)


def predicting_places(labels: Tensor) -> Tensor:
    """Where a supervised token is predicted from: places in the flat batch, int64.

    Args:
        labels: rows x tokens, -100 where a token is not supervised.
    """
    return (_targets(labels) != IGNORED).nonzero().squeeze(1)


def _targets(labels: Tensor) -> Tensor:
    """The label that each place of the flat batch predicts."""
    targets = labels.roll(-1, dims=1)
    targets[:, -1] = IGNORED
    return targets.flatten()


def logits_at_a_time(vocabulary: int) -> int:
    """How many tokens have their logits at a time."""
    return max(_LEAST, _LOGITS // max(vocabulary, 1))


def token_losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, float32.

    Args:
        head: the output layer.
        hidden: tokens x width.
        targets: ids, tokens.
    """
    if type(head) is not nn.Linear or head.weight.requires_grad or head.weight.dtype != hidden.dtype:
        # It is trained, adapted or computed in another type: autograd sees to all of it.
        return cross_entropy(head(hidden).float(), targets, reduction="none")
    losses: Tensor = _FrozenHeadLoss.apply(hidden, head.weight, head.bias, targets)
    return losses


def _mean(losses: Tensor) -> Tensor:
    """The mean, a scalar; 0 without tokens."""
    return losses.sum() / max(1, len(losses))


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropies of a frozen output layer; the gradient is taken in the same sweep over its logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        size = logits_at_a_time(len(weight))
        for start in range(0, len(hidden), size):
            part, ids = hidden[start : start + size], targets[start : start + size, None]
            logits = linear(part, weight, bias).float()
            norm = logits.logsumexp(1, keepdim=True)
            losses[start : start + size] = (norm - logits.gather(1, ids))[:, 0]
            if gradient is not None:
                # d loss / d logits = softmax - 1 at the target
                logits.sub_(norm).exp_()
                logits.scatter_add_(1, ids, torch.full_like(ids, -1, dtype=logits.dtype))
                torch.mm(logits.to(weight.dtype), weight, out=gradient[start : start + size])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype)[:, None], None, None, None
