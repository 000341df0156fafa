"""Training that makes the model worse than its base: said when it is seen, with what is likely to be the cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.recipe.derived import learning_rate
from gora.recipe.schema import Recipe
from gora.runs.results import is_worse
from gora.runtime.console import Output
from gora.training.course import Course

_ROSE, _FELL, _CLEARLY, _FAR = 1.05, 0.97, 1.1, 1.5
_AT_THE_START = 1.01
_FACTORS = (3, 10, 30, 100, 300, 1000)


class CompareWithBase(TrainerCallback):
    """Warns once when the training loss has left that of the base, and whenever an evaluation turns out worse than it.

    Args:
        losses: evaluation loss of the `base` model and with the `initial` adapter; empty without rows.
        course: the training losses so far.
        recipe: what may be the cause.
        output: where it is said.
    """

    def __init__(self, losses: Mapping[str, float], course: Course, recipe: Recipe, output: Output) -> None:
        self._losses, self._course, self._recipe, self._output = losses, course, recipe, output
        self._training_is_worse = self._evaluation_is_worse = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare the smoothed training loss with the base's on training rows, as the first step shows it."""
        start, smoothed = self._course.start, self._course.smoothed
        if smoothed is None or start is None or self._training_is_worse:
            return
        base = start * (self._losses["base"] / self._losses["initial"] if self._losses else 1.0)
        if smoothed > _CLEARLY * base:
            self._training_is_worse = True
            self._output.warn(
                f"At step {state.global_step} the training loss ({smoothed:.4f}, smoothed) is above that of the base "
                f"(about {base:.4f}). {likely_cause(self._losses, self._course, self._recipe)}"
            )

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare the evaluation loss with the base's."""
        loss, base, before = kwargs["metrics"]["eval_loss"], self._losses["base"], self._evaluation_is_worse
        self._evaluation_is_worse = is_worse(loss, base)
        if self._evaluation_is_worse and not before:
            losses = {**self._losses, "final": loss}
            self._output.warn(
                f"At step {state.global_step} the evaluation loss ({loss:.4f}) is above that of the base model "
                f"({base:.4f}). {likely_cause(losses, self._course, self._recipe)}"
            )


def start_warning(losses: Mapping[str, float], recipe: Recipe, *, gamma: float | None) -> str | None:
    """What to say where the initial values alone make the model worse than its base; None where they do not.

    Args:
        losses: `base` and `initial`, or empty.
        recipe: what may be changed.
        gamma: of the plan of GoRA that the initial values come from; None of other methods.
    """
    if not losses or losses["initial"] <= _AT_THE_START * losses["base"]:
        return None
    remedy = (
        f"Its first step is too large: set gora.gamma to about {float(f'{gamma / 4:.2g}'):g} ({gamma:g} now)"
        f"{'' if recipe.gora.gamma == 'auto' else ', or to auto, which looks for the best'}, and run again with "
        "--overwrite."
        if gamma is not None
        else f"The initial values of {recipe.adapter.method} are too large for this model: lower adapter.alpha, or "
        "give another adapter.method."
    )
    return (
        f"The initial adapter raises the evaluation loss from {losses['base']:.4f} to {losses['initial']:.4f}. {remedy}"
    )


def end_warning(losses: Mapping[str, float], course: Course, recipe: Recipe) -> str | None:
    """What to say where the trained adapter is worse than its base; None where it is not, or nobody knows."""
    if "final" not in losses or not is_worse(losses["final"], losses["base"]):
        return None
    return (
        f"The trained adapter is worse than its base: evaluation loss {losses['final']:.4f}, {losses['base']:.4f} with "
        f"the base model. {likely_cause(losses, course, recipe)}"
    )


def likely_cause(losses: Mapping[str, float], course: Course, recipe: Recipe) -> str:
    """A sentence or two on why the model has become worse, and what to try.

    Args:
        losses: evaluation losses so far: `base`, `initial` and, after an evaluation, `final`; may be empty.
        course: the training losses.
        recipe: the settings in question.
    """
    rate, steps = learning_rate(recipe.train), course.taken + course.skipped
    latest, start = course.latest, course.start
    if latest is None or start is None:
        return "Likely causes: train.learning_rate is too high, there were too few steps, or the rows are of two kinds."
    lowest = course.lowest if course.lowest is not None else min(course.recent)
    if course.skipped or latest > _ROSE * lowest:
        factor = _times_too_high(losses, course)
        return (
            f"Likely cause: train.learning_rate ({rate:g}) is about {factor} times too high; the training loss was "
            f"{lowest:.4f} at its lowest and is {latest:.4f}. Try {rate / factor:.1g}."
        )
    if (
        losses
        and losses["initial"] > _AT_THE_START * losses["base"]
        and losses.get("final", math.inf) < losses["initial"]
    ):
        return (
            f"Likely cause: the initial values began above the base ({losses['initial']:.4f}), and {steps:,} steps "
            f"were too few to make up for it. Lower gora.gamma ({recipe.gora.gamma}), or raise train.epochs."
        )
    if latest < _FELL * start:
        return (
            f"Likely cause: the rows. The training loss fell from {start:.4f} to {latest:.4f}, so that the evaluation "
            "rows are of another kind than the training rows, or these were learnt by heart: look at both, lower "
            "train.epochs, or add rows."
        )
    return (
        f"Likely cause: too few steps ({steps:,}) at the rate {rate:g}; the training loss has hardly moved "
        f"({start:.4f}, now {latest:.4f}). Raise train.epochs or train.max_steps, or try other values of "
        "train.learning_rate (`gora compare --tune`)."
    )


def _times_too_high(losses: Mapping[str, float], course: Course) -> int:
    """A rough factor: the rate at which the loss was lowest, if that was in the warm-up, or how far things went."""
    far = course.skipped > 0 or (losses and losses.get("final", 0.0) > _FAR * losses["base"])
    wanted = 10.0 if far or (course.lowest and course.latest and course.latest > _FAR * course.lowest) else 3.0
    if 0 < course.lowest_rate < 1 and course.lowest_step < course.taken:
        wanted = max(wanted, 1 / course.lowest_rate)
    return min(_FACTORS, key=lambda factor: abs(math.log(factor / wanted)))
