"""Steps whose passes are recorded: gradients lie in one tensor, which is summed over processes once a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from gora.models.recorded import LENGTHS, RecordedBlocks
from gora.models.rows_apart import keeps_apart
from gora.models.supervised_head import has_supervised_head, with_blocks
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.world import World
from gora.training.layout import StepLayout

_PASSES = 16
"""Micro-batches of a run for each length: recording one takes as long as a few of them."""
_FEWEST = 4


def recorded_steps(
    model: PreTrainedModel | PeftModel, context: RunContext, layout: StepLayout, *, steps: int, lean: bool
) -> RecordedSteps | None:
    """Recorded steps for a run, where its passes can be recorded: None elsewhere.

    Args:
        model: with its adapter, before an engine wraps it.
        context: the run.
        layout: of the rows of a step.
        steps: of the run, which says how many lengths are worth recording.
        lean: whether the model is run without autocast.
    """
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    train, engine = context.recipe.train, context.engine
    plain = train.kernels != "compile" and not recomputes_activations(train)
    if not (plain and lean and has_supervised_head(base)) or (layout.end_to_end and not keeps_apart(base)):
        return None
    if context.device.type != "cuda" or engine.shards_weights or engine.stage == 1:
        return None
    trained = [value for value in model.parameters() if value.requires_grad]
    within = {id(value) for value in base.base_model.parameters()}  # type: ignore[union-attr]
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if draws or not all(id(value) in within for value in trained):
        return None
    # DeepSpeed sums gradients over processes itself.
    world = context.world if engine.kind == "ddp" else World()
    passes = steps * train.batch_size // (layout.size * context.world.size)
    lengths = max(_FEWEST, min(LENGTHS, passes // _PASSES))
    return RecordedSteps(base, trained, layout.size * layout.longest, world, lengths)


class RecordedSteps:
    """Has the passes of a step recorded, and holds their gradients.

    Args:
        model: the causal model.
        trained: its parameters that are trained.
        tokens: the most of a micro-batch.
        world: the processes whose gradients are to be averaged here.
        lengths: how many a micro-batch may have where rows lie end to end.
    """

    def __init__(
        self, model: nn.Module, trained: list[nn.Parameter], tokens: int, world: World, lengths: int = LENGTHS
    ) -> None:
        self._model, self._trained, self._world = model, trained, world
        self._flat = torch.zeros(sum(value.numel() for value in trained), device=trained[0].device)
        parts = self._flat.split([value.numel() for value in trained])
        self._sums = [part.view_as(value) for part, value in zip(parts, trained, strict=True)]
        body: Any = model.base_model
        self._blocks = RecordedBlocks(body, trained, self._sums, tokens, output.log, lengths)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside the block, all passes of a step; after it, every parameter has its gradient, the mean of processes."""
        self._flat.zero_()
        for parameter, total in zip(self._trained, self._sums, strict=True):
            # An engine may put another tensor in its place.
            parameter.grad = total.detach()
        with with_blocks(self._model, self._blocks):
            yield
        if self._world.size > 1:
            self._world.sum_everywhere(self._flat)
            self._flat /= self._world.size

    @property
    def recordings(self) -> int:
        """How many lengths are recorded."""
        return self._blocks.recordings

    def release(self) -> None:
        """Give the memory of recordings back."""
        self._blocks.release()
