"""Loss on rows that are not trained on: the mean over all supervised tokens, or over the rows of a classifier."""

from __future__ import annotations

import math

from peft import PeftModel
from torch import nn, no_grad

from gora.runs.setup import Setup
from gora.runtime.precision import autocast


def evaluate_loss(model: nn.Module, setup: Setup) -> float:
    """Mean cross-entropy per supervised token, a classifier's per row, over all evaluation rows; in nats.

    The same in every process. Every token counts equally, so that the figure does not depend on how rows fall into
    micro-batches and processes.
    """
    rows, world = setup.data.eval, setup.world
    assert rows is not None
    size = setup.recipe.evaluation.micro_batch_size or setup.recipe.train.micro_batch_size
    # Rows of similar length share a micro-batch: less padding, and the sum stays the same.
    order = sorted(range(len(rows)), key=lambda index: rows.lengths[index])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = batches[world.index :: world.size]
    was_training = model.training
    model.eval()
    # AdaLoRA adds its penalty to the loss outside the base model, which has the adapted layers inside.
    computing = model.get_base_model() if isinstance(model, PeftModel) and model.peft_type == "ADALORA" else model
    total, tokens = 0.0, 0
    with no_grad(), autocast(setup.precision, setup.device):
        for turn in range(math.ceil(len(batches) / world.size)):
            # Where weights are shared out, a process without rows still takes part in the others' passes.
            counts = turn < len(mine)
            batch = setup.move(setup.collator([rows[index] for index in (mine[turn] if counts else batches[0])]))
            count = int(setup.collator.supervised(batch["labels"]))
            if setup.engine.shards_weights or (count and counts):
                loss = computing(**batch, **setup.forward_settings).loss.item()
                total += loss * count if count and counts else 0.0
                tokens += count if counts else 0
    model.train(was_training)
    return world.total(total) / world.total(tokens)
