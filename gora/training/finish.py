"""The end of a training: its last evaluation, and what is said of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from gora.adapters.base import check_base
from gora.errors import InputError, Interrupted
from gora.runs.card import write_card
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.loss import finite_loss
from gora.runs.provenance import check_same_settings
from gora.runs.results import complete_results, held_results
from gora.runs.state import Progress
from gora.runtime.console import output
from gora.runtime.memory import peak_text
from gora.runtime.progress import clock
from gora.training.course import Course
from gora.training.loop import Fitted
from gora.training.start import Wrapped, load_trained
from gora.training.trainer import GoraTrainer
from gora.training.worse import end_warning


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the stage made."""

    adapter: Path
    losses: dict[str, float]
    """Evaluation loss of the `base` model, with the `initial` and with the `final` adapter; empty without rows."""
    steps: int = 0
    seconds: float = 0.0


def finish(context: RunContext, start: Wrapped, fitted: Fitted) -> Trained:
    """Evaluate what was trained for the last time, write `results.json`, and say what came of it.

    Raises:
        Interrupted: a signal came while it was saved; the evaluation is left to `--resume`.
    """
    folder, trainer, report = context.folder, fitted.trainer, fitted.report
    made = folder.adapter if isinstance(start.model, PeftModel) else folder.model
    if number := context.world.most(fitted.request.number or 0):
        raise Interrupted(number, f"{made} is trained and saved; add --resume for what is left.")
    final = final_loss(context, trainer, start)
    losses = context.world.from_main(lambda: _record(folder, final))
    steps = trainer.state.global_step
    rate = f"{steps} steps in {clock(report.seconds)}, {report.tokens_per_second:,.0f} {report.unit}/s"
    output.say(f"timing    {rate}; {peak_text()}")
    output.say(f"base      {'base' if start.frozen == start.original else 'frozen'} weights unchanged (SHA-256)")
    output.say(f"adapter   {made}")
    if warning := end_warning(losses, fitted.course, context.recipe):
        output.warn(warning)
    return Trained(adapter=made, losses=losses, steps=steps, seconds=report.seconds)


def finish_later(context: RunContext, progress: Progress) -> Trained:
    """Evaluate what an earlier command has trained and saved, and write `results.json`.

    Raises:
        InputError: it was trained with other settings, rows or base weights, or what was noted before the end is
            missing.
    """
    folder, trained = context.folder, progress.trained
    assert trained is not None
    check_same_settings(folder, context.recipe)
    data = held_results(folder)["data"]
    output.say(f"resuming  {trained} is trained; its evaluation is left to do")
    with output.logging_to(folder.log, "train"):
        if context.data.fingerprint != data:
            raise InputError(f"The rows are not those that {trained} was trained on. Add --overwrite to start over.")
        if trained == folder.adapter:
            check_base(trained, context.source, context.world)
        final = None
        if context.data.eval:
            model = load_trained(context, trained)
            with output.terminal.status("evaluating"):
                final = finite_loss(model, context, "the trained adapter")
        losses = context.world.from_main(lambda: _record(folder, final))
        output.say(f"adapter   {trained}")
        newest = folder.all_checkpoints()[-1:]
        if warning := end_warning(losses, Course.read(newest[0]) if newest else Course(), context.recipe):
            output.warn(warning)
    return Trained(adapter=trained, losses=losses)


def final_loss(context: RunContext, trainer: GoraTrainer, start: Wrapped) -> float | None:
    """Evaluation loss of what was trained, computed again unless it is that of the last step; None without rows."""
    if not context.data.eval:
        return None
    step, loss = trainer.last_evaluation
    known = step == trainer.state.global_step and math.isfinite(loss)
    return loss if known else finite_loss(start.model, context, "the trained adapter")


def _record(folder: RunFolder, final: float | None) -> dict[str, float]:
    losses = complete_results(folder, final)
    write_card(folder)
    return losses
