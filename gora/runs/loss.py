"""Loss on rows that are not trained on: the mean over all supervised tokens, or over the rows of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn, no_grad

from gora.data.examples import Examples
from gora.errors import GoraError
from gora.methods import model_for_loss
from gora.models.rows_apart import forward
from gora.recipe.derived import training_micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.precision import autocast


def batch_of_rows(model: nn.Module, context: RunContext, rows: Examples, indices: Sequence[int]) -> dict[str, Any]:
    """A micro-batch of these rows on the device."""
    return context.move(context.collate(model, rows.take(indices)))


@dataclass(frozen=True)
class EvaluationLoss:
    """Loss on the evaluation rows.

    Attributes:
        mean: over the tokens of all rows.
        by_source: over those of each source, by its name; empty where there is only one.
    """

    mean: float
    by_source: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """`1.2345`, or `1.2345 (a.jsonl 1.1000, b.jsonl 1.3690)`."""
        return f"{self.mean:.4f}" + (f" ({self.sources_text()})" if self.by_source else "")

    def sources_text(self) -> str:
        """`a.jsonl 1.1000, b.jsonl 1.3690`."""
        return ", ".join(f"{name} {loss:.4f}" for name, loss in self.by_source.items())


def evaluate_loss(model: nn.Module, context: RunContext, rows: Examples | None = None) -> float:
    """The mean of `evaluate_sources`."""
    return evaluate_sources(model, context, rows).mean


def evaluate_sources(model: nn.Module, context: RunContext, rows: Examples | None = None) -> EvaluationLoss:
    """Mean cross-entropy per supervised token, a classifier's per row, over all evaluation rows; in nats.

    Args:
        model: with or without an adapter; left in the mode it was in.
        context: rows, arithmetic and processes.
        rows: others than the run's evaluation rows.

    The same in every process. Every token counts equally, so that the figure does not depend on how rows fall into
    micro-batches and processes.
    """
    names = context.data.eval_sources if rows is None else ()
    world, rows = context.world, rows or context.data.eval
    assert rows is not None
    several = len(names) > 1
    size = context.recipe.evaluation.micro_batch_size or training_micro_batch_size(context.recipe.train)
    # Rows of similar length share a micro-batch: less padding, and the sum stays the same.
    order = sorted(range(len(rows)), key=lambda index: rows.lengths[index])
    groups = [order]
    if several:
        groups = [[index for index in order if rows.sources[index] == number] for number in range(len(names))]
    batches = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
    mine = batches[world.index :: world.size]
    was_training = model.training
    model.eval()
    computing = model_for_loss(model)
    totals, tokens = [0.0 for _ in groups], [0.0 for _ in groups]
    with no_grad(), autocast(context.precision, context.device):
        for turn in range(math.ceil(len(batches) / world.size)):
            # Where weights are shared out, a process without rows still takes part in the others' passes.
            counts = turn < len(mine)
            chosen = mine[turn] if counts else batches[0]
            batch, source = batch_of_rows(model, context, rows, chosen), int(rows.sources[chosen[0]]) if several else 0
            count = int(context.collator.supervised(batch["labels"]))
            if context.engine.shards_weights or (count and counts):
                loss = forward(computing, batch, **context.forward_settings).loss.item()
                totals[source] += loss * count if count and counts else 0.0
                tokens[source] += count if counts else 0
    model.train(was_training)
    totals, tokens = [world.total(value) for value in totals], [world.total(value) for value in tokens]
    of_each = zip(names, totals, tokens, strict=False)
    by_source = {name: total / count for name, total, count in of_each if count} if several else {}
    return EvaluationLoss(sum(totals) / sum(tokens), by_source)


def finite_loss(model: nn.Module, context: RunContext, what: str) -> float:
    """As `evaluate_loss`, for a figure without which the run is worth nothing.

    Args:
        model: with or without an adapter.
        context: rows, arithmetic and processes.
        what: whose loss it is, for the message.

    Raises:
        GoraError: it is NaN or infinite, naming rows that make it so.
    """
    found_loss, rows = evaluate_sources(model, context), context.data.eval
    loss = found_loss.mean
    if found_loss.by_source:
        output.say(f"sources   {found_loss.sources_text()}: loss of {what}")
    if math.isfinite(loss) or rows is None:
        return loss
    found = [rows.where(index) for index in not_finite_rows(model, context, rows, range(len(rows)))]
    some = f"in {len(found)} of {len(rows)} rows ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
    raise GoraError(
        f"The evaluation loss of {what} is NaN or infinity ({loss}){f', {some}' if found else ''}. Look at those rows, "
        "compute in float32 (train.precision: fp32, model.dtype: float32), or lower train.learning_rate or gora.gamma.",
        code="not-finite",
    )


def not_finite_rows(model: nn.Module, context: RunContext, rows: Examples, indices: Sequence[int]) -> list[int]:
    """Those rows whose loss is NaN or infinite by themselves, without dropout; all processes of a run ask together.

    Args:
        model: with or without an adapter; left in the mode it was in.
        context: arithmetic and processes.
        rows: where they are.
        indices: which rows to look at.
    """
    computing, was_training = model_for_loss(model), model.training
    size = training_micro_batch_size(context.recipe.train)

    def bad(chosen: Sequence[int]) -> bool:
        batch = batch_of_rows(model, context, rows, chosen)
        with no_grad(), autocast(context.precision, context.device):
            loss = forward(computing, batch, **context.forward_settings).loss.item()
        # Where weights are sharded, all have to go on in the same way.
        return context.world.any(not math.isfinite(loss))

    supervised = [index for index in indices if rows.supervised[index]]
    model.eval()
    try:
        groups = [supervised[start : start + size] for start in range(0, len(supervised), size)]
        return [index for group in groups if bad(group) for index in group if bad([index])]
    finally:
        model.train(was_training)
