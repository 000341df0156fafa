"""Loss on rows that are not trained on: the mean over all supervised tokens."""

from __future__ import annotations

from torch import nn, no_grad

from gora.runtime.precision import autocast
from gora.stages.setup import Setup


def evaluate_loss(model: nn.Module, setup: Setup) -> float:
    """Mean cross-entropy per supervised token over all evaluation rows, in nats.

    Every token counts equally, so that the figure does not depend on how rows fall into micro-batches.
    """
    rows = setup.data.eval
    assert rows is not None
    size = setup.recipe.evaluation.micro_batch_size or setup.recipe.train.micro_batch_size
    # Rows of similar length share a micro-batch: less padding, and the sum stays the same.
    order = sorted(range(len(rows)), key=lambda index: rows.lengths[index])
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    with no_grad(), autocast(setup.precision, setup.device):
        for start in range(0, len(order), size):
            batch = setup.move(setup.collator([rows[index] for index in order[start : start + size]]))
            labels = batch["labels"] if setup.source.encoder_decoder else batch["labels"][:, 1:]
            count = int((labels != -100).sum())
            if count:
                total += model(**batch, use_cache=False).loss.item() * count
                tokens += count
    model.train(was_training)
    return total / tokens
