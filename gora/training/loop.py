"""Take the optimizer steps of a run, and save what was trained."""

from __future__ import annotations

from dataclasses import dataclass

from gora.errors import GoraError, Interrupted
from gora.planning.memory_advice import explained
from gora.planning.sizes import TRAIN
from gora.runs.context import RunContext
from gora.runs.folder import step_of
from gora.runtime.console import output
from gora.runtime.interrupt import StopRequest, stopping_between_steps
from gora.runtime.out_of_memory import is_out_of_memory, release_memory
from gora.training.assembly import make_trainer
from gora.training.callbacks import Report
from gora.training.course import Course
from gora.training.engine_training import forget_engine
from gora.training.fitting import StepOutOfMemory
from gora.training.keeping import Figure, read_best, restore
from gora.training.opening import Opened
from gora.training.saving import save_trained
from gora.training.start import Wrapped
from gora.training.trackers import tracking
from gora.training.trainer import GoraTrainer
from gora.training.trial import halved_in_words


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the training loop leaves."""

    trainer: GoraTrainer
    report: Report
    request: StopRequest
    course: Course


def fit(context: RunContext, opened: Opened, start: Wrapped, figure: Figure | None = None) -> Fitted:
    """Take the optimizer steps that are left, and save what was trained; see `make_trainer`.

    Raises:
        Interrupted: a signal stopped the loop before its end, and a checkpoint was saved.
        GoraError: memory ran out, too many steps were lost, or the base weights changed during training.
    """
    with stopping_between_steps() as request, tracking(context.recipe, context.folder.path):
        trainer, report, guard = make_trainer(context, opened, start, request, figure)
        if failure := _take_steps(trainer, report, opened):
            raise _out_of_memory(context, trainer, failure)
        reached, number = trainer.state.global_step, context.world.most(request.number or 0)
        newest = next(reversed(context.folder.all_checkpoints()), "")
        guard.refuse_if_lost(reached, opened.steps, str(newest))
        if number and reached < opened.steps:
            raise Interrupted(number, f"{newest} holds step {reached} of {opened.steps}; add --resume to continue.")
        if context.recipe.train.keep == "best":
            _restore_best(context, trainer, start)
        # A signal that comes from here on waits until what was trained is saved.
        save_trained(context, start, report, trainer)
    return Fitted(trainer=trainer, report=report, request=request, course=trainer.course)


def _take_steps(trainer: GoraTrainer, report: Report, opened: Opened) -> Exception | None:
    """Run the loop; where memory runs out, the error comes back without the frames that hold on to that memory."""
    try:
        trainer.train(resume_from_checkpoint=str(opened.checkpoint) if opened.checkpoint else None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return error.with_traceback(None)
    finally:
        report.stop()
        trainer.release_recordings()
        trainer.release_workers()
        forget_engine()
    return None


def _restore_best(context: RunContext, trainer: GoraTrainer, start: Wrapped) -> None:
    """Put the values of the best evaluation in the place of the last ones."""
    if (best := read_best(context.folder.best)) is None:
        return
    restore(start.model, best)
    trainer.last_evaluation = (trainer.state.global_step, best.loss)
    output.say(f"best      the values after step {best.step}, evaluation loss {best.loss:.4f}")


def _out_of_memory(context: RunContext, trainer: GoraTrainer, failure: Exception) -> GoraError:
    """What ends the command; the steps that were finished are kept, where no other process is needed for that."""
    release_memory()
    if isinstance(failure, StepOutOfMemory):
        # Anywhere else a step may be half taken.
        trainer.save_last_step()
    context = context.with_settings({TRAIN: trainer.fitting.rows})
    kept = ""
    if saved := context.folder.all_checkpoints():
        half = f", with{halved_in_words(context)} for example" if halved_in_words(context) else ""
        kept = f"{saved[-1]} holds step {step_of(saved[-1])}; add --resume to continue{half}."
    return explained(context, failure, "training", where=f"in step {trainer.state.global_step + 1}", kept=kept)
