"""gora's ways of training one wrapped model on rows, for `training.py` to time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clock import Clock, Told
from in_memory import context_of, logging_into
from peft import PeftModel

from gora.data import Examples
from gora.methods import METHODS
from gora.models.rows_apart import keeps_apart
from gora.runs.base_model import speed_up
from gora.runs.context import RunContext
from gora.training.course import Course
from gora.training.layout import StepLayout, choose_layout, padding_by_length
from gora.training.step_rows import KeptSteps
from gora.training.trainer import GoraTrainer

RECORDING = 12
"""Steps before those that are asked for, of ways that record passes: lengths are recorded when they come again."""


def trainer_of(wrapped: PeftModel, context: RunContext, steps: int, method: str = "lora") -> GoraTrainer:
    """gora's Trainer, as a run makes it.

    Args:
        wrapped: the model with the adapter of the method.
        context: gives rows and sizes.
        steps: optimizer steps.
        method: what is trained.
    """
    rows, train = context.data.train, context.recipe.train
    micro, batch = int(train.micro_batch_size), train.batch_size
    padding = padding_by_length(rows.lengths, batch, micro)
    kind = choose_layout(
        context.recipe.data.packing, keeps_apart=keeps_apart(wrapped.get_base_model()), padding=padding
    )
    return GoraTrainer(
        wrapped,
        context,
        steps=steps,
        steps_of_run=KeptSteps(rows, batch, context.recipe.seed),
        layout=StepLayout(kind=kind, size=micro, longest=max(rows.lengths), processes=1),
        method=METHODS[method],
        lr_ratio=METHODS[method].lr_ratio,
        all_used=True,
        evaluate_loss=None,
        provenance={},
        course=Course(),
    )


def settings_of(micro: int, batch: int, steps: int, **more: Any) -> dict[str, Any]:
    """Of a recipe, by dotted key."""
    return {
        "train.micro_batch_size": micro,
        "train.batch_size": batch,
        "train.max_steps": steps,
        "train.learning_rate": 1e-4,
        "train.log_steps": 1000,
        **more,
    }


def by_gora(
    wrapped: PeftModel,
    rows: Examples,
    micro: int,
    batch: int,
    steps: int,
    clock: Clock,
    folder: Path,
    packing: str = "auto",
    kernels: str = "auto",
    records: bool = True,
) -> dict[str, Any]:
    """gora's Trainer with these settings."""
    steps += RECORDING * records
    base: Any = wrapped.get_base_model()
    settings = settings_of(micro, batch, steps, **{"data.packing": packing, "train.kernels": kernels})
    context = context_of(base, rows, settings, folder)
    told: list[str] = []
    with logging_into(told):
        speed_up(context, base)
        trainer = trainer_of(wrapped, context, steps)
        trainer.add_callback(Told(clock, lambda: trainer.padding.tokens))
        if not records:
            trainer._recorded = None
        trainer.train()
    return {
        "padding": trainer.padding.share,
        "waiting": trainer.waited.total / (clock.times[-1] - clock.times[0]),
        "layout": trainer._layout.kind,
        "log": told,
        "recordings": trainer._recorded.recordings if trainer._recorded else 0,
    }


def gora_as_peft(*arguments: Any) -> dict[str, Any]:
    """Without packing and kernels."""
    return by_gora(*arguments, packing="none", kernels="none")


def gora_liger(*arguments: Any) -> dict[str, Any]:
    """With Liger."""
    return by_gora(*arguments, kernels="liger")


def gora_fused(*arguments: Any) -> dict[str, Any]:
    """Without Liger."""
    return by_gora(*arguments, kernels="fused")


def gora_padded(*arguments: Any) -> dict[str, Any]:
    """Kernels alone."""
    return by_gora(*arguments, packing="none")


def gora_unrecorded(*arguments: Any) -> dict[str, Any]:
    """Without recording passes."""
    return by_gora(*arguments, records=False)


def gora_packed(*arguments: Any) -> dict[str, Any]:
    """Rows end to end, also those of one length."""
    return by_gora(*arguments, packing="packed")


def gora_packed_unrecorded(*arguments: Any) -> dict[str, Any]:
    """The same without recording passes."""
    return by_gora(*arguments, packing="packed", records=False)


def gora_compiled(*arguments: Any) -> dict[str, Any]:
    """With torch.compile on each block, which records nothing."""
    return by_gora(*arguments, kernels="compile", records=False)


def gora_whole_step(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path
) -> dict[str, Any]:
    """With all rows of a step in one micro-batch, which `micro_batch_size: auto` chooses where they fit."""
    return by_gora(wrapped, rows, batch, batch, steps, clock, folder)


WAYS = {
    "gora, packing and kernels none": gora_as_peft,
    "gora, packing none": gora_padded,
    "gora, kernels liger": gora_liger,
    "gora, kernels fused": gora_fused,
    "gora": by_gora,
    "gora, mixed ranks": by_gora,
    "gora, unrecorded": gora_unrecorded,
    "gora, packed": gora_packed,
    "gora, packed, mixed ranks": gora_packed,
    "gora, packed, unrecorded": gora_packed_unrecorded,
    "gora, packed, unrecorded, mixed ranks": gora_packed_unrecorded,
    "gora, kernels compile": gora_compiled,
    "gora, one micro-batch": gora_whole_step,
}
