"""Save what was trained, with what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from gora.adapters.save import BaseNote, adapter_values, save_adapter, save_values, save_whole
from gora.data.prompting import describe_prompt_format
from gora.errors import GoraError
from gora.files import delete
from gora.models.quantization import quantization_of
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runs.results import forget_training, hold_results, record_stage, versions
from gora.runtime.memory import peak_bytes
from gora.training.callbacks import Report
from gora.training.start import Wrapped, fingerprint
from gora.training.trainer import GoraTrainer


def save_trained(context: RunContext, start: Wrapped, report: Report, trainer: GoraTrainer) -> None:
    """Save what was trained, after what is known of it; an earlier evaluation of another adapter goes first.

    Raises:
        GoraError: it could not be written, or the base weights changed during training; `adapter.rejected` holds it.
    """
    folder, world, model = context.folder, context.world, start.model
    if world.main:
        _hold_results(context, start, report, trainer)
    # Values first: neither a check nor a library may lose what was trained.
    values = adapter_values(model)
    unchanged = fingerprint(model, world) == start.frozen
    place = folder.rejected if not unchanged else folder.adapter if isinstance(model, PeftModel) else folder.model
    if world.main:
        _write_or_rescue(context, start, place, values)
    if not unchanged:
        raise GoraError(
            "The base weights changed during training, so that what was trained would not fit the base model. It is "
            f"kept in {folder.rejected} and does not count as the result.",
            code="base-changed",
        )


def _hold_results(context: RunContext, start: Wrapped, report: Report, trainer: GoraTrainer) -> None:
    """Write down what is known before the last evaluation."""
    folder = context.folder
    cost = {"trainable_parameters": start.trainable, "seconds": report.seconds, "peak_bytes": peak_bytes()}
    result = {"rows": len(context.data.eval or ()), "loss": start.losses, **cost, "versions": versions()}
    delete(folder.merged)
    forget_training(folder)
    record_stage(folder, "train", _facts(context, report, trainer))
    hold_results(folder, context.data.fingerprint, result)


def _write_or_rescue(context: RunContext, start: Wrapped, place: Path, values: dict[str, Tensor]) -> None:
    """Write what was trained; where that fails, at least its values are kept."""
    rejected = context.folder.rejected
    try:
        _write(context, start, place, values)
    except Exception as error:
        try:
            save_values(rejected, values)
        except GoraError:
            # There is no room for the values alone either: the newest checkpoint is what training resumes from.
            raise error from None
        kind = "" if isinstance(error, GoraError) else f"{type(error).__name__}: "
        raise GoraError(
            f"What was trained could not be saved as usual ({kind}{error}). Its values are in {rejected}.",
            code="not-saved",
        ) from error


def _write(context: RunContext, start: Wrapped, place: Path, values: dict[str, Tensor]) -> None:
    model, prompt_format = start.model, describe_prompt_format(context.recipe.data)
    if not isinstance(model, PeftModel):
        save_whole(
            place,
            model,
            context.processor,
            model.dtype,
            method=context.recipe.adapter.method,
            prompt_format=prompt_format,
        )
        return
    labels = None if context.source.head == "language" else tuple(context.recipe.data.choices or ())
    base = BaseNote(
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization_of(context.recipe.model, context.source),
        fingerprint=start.original,
        weights=context.base.note,
        quantized_files=context.source.quantized_files,
        labels=labels,
    )
    save_adapter(
        place,
        model,
        context.processor,
        method=context.recipe.adapter.method,
        base=base,
        prompt_format=prompt_format,
        values=values,
        initial=start.initial,
    )


def _facts(context: RunContext, report: Report, trainer: GoraTrainer) -> dict[str, Any]:
    return {
        "engine": context.engine.name,
        "runs_as": report.engine_text,
        "processes": context.world.size,
        "steps": trainer.state.global_step,
        "skipped_steps": trainer.course.skipped,
        "spikes": trainer.course.spikes,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "tokens_per_second": report.tokens_per_second,
        "unit": report.unit,
        "seconds": report.seconds,
        "data_wait_seconds": trainer.waited.total,
        "peak_bytes": peak_bytes(),
        "micro_batch_size": trainer.fitting.rows,
        "activation_checkpointing": recomputes_activations(context.recipe.train),
    }
