"""How training goes, step by step: what loss is usual, which steps were skipped, whether the loss falls.

Every process keeps the same course, since losses are agreed before they are added. It is saved with each checkpoint, so
that a resumed run notices what an unbroken one would.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from gora.errors import InputError

_WINDOW = 64
_FEWEST = 16
_SMOOTHED = 16
_TIMES_MAD = 10.0
_AT_LEAST = 1.1
FILE = "course.json"
"""In a checkpoint: the course up to its step."""


@dataclass(kw_only=True)
class Course:
    """The course of one run.

    Attributes:
        taken: steps that the optimizer took.
        skipped: steps that it did not take, because the loss or the gradient was not finite.
        in_a_row: how many of the latest steps were skipped.
        spikes: steps whose loss was far above the usual.
        start: the loss of the first step, before any weight has moved.
        lowest: the lowest smoothed loss.
        lowest_step: the step at which it was reached.
        lowest_rate: share of the peak learning rate there.
        recent: losses of the latest steps that were taken, the oldest first.
        best_loss: the loss of the best evaluation so far.
        best_figure: its figure of a task, where one decides.
        best_step: the step after which it was measured.
        not_better: how many evaluations in a row have not been better.
    """

    taken: int = 0
    skipped: int = 0
    in_a_row: int = 0
    spikes: int = 0
    start: float | None = None
    lowest: float | None = None
    lowest_step: int = 0
    lowest_rate: float = 0.0
    recent: list[float] = field(default_factory=list)
    best_loss: float | None = None
    best_figure: float | None = None
    best_step: int = 0
    not_better: int = 0

    @classmethod
    def read(cls, checkpoint: Path) -> Course:
        """The course that a checkpoint was saved with; a new one where an older gora saved it.

        Raises:
            InputError: the file cannot be read.
        """
        path = checkpoint / FILE
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error}. Start training over with --overwrite.") from None

    def as_json(self) -> dict[str, Any]:
        """For `read`."""
        return asdict(self)

    @property
    def smoothed(self) -> float | None:
        """Median loss of the latest sixteen steps; None before there are as many."""
        return median(self.recent[-_SMOOTHED:]) if len(self.recent) >= _SMOOTHED else None

    @property
    def latest(self) -> float | None:
        """The smoothed loss, or in a short run the last one; None before the first step."""
        return self.smoothed or (self.recent[-1] if self.recent else None)

    @property
    def bound(self) -> float | None:
        """The loss above which a step is a spike: the median of the window plus ten median absolute deviations, and at
        least a tenth above the median; None before there are enough steps.
        """
        if len(self.recent) < _FEWEST:
            return None
        usual = median(self.recent)
        deviation = median(abs(loss - usual) for loss in self.recent)
        return max(usual + _TIMES_MAD * deviation, _AT_LEAST * usual)

    @property
    def usual(self) -> float:
        """Median loss of the window."""
        return median(self.recent)

    def take(self, step: int, loss: float, rate: float) -> bool:
        """Add a step that is taken.

        Args:
            step: its number.
            loss: its mean loss over all processes, finite.
            rate: its learning rate over the peak.

        Returns:
            Whether it is a spike.
        """
        bound = self.bound
        spike = bound is not None and loss > bound
        self.taken += 1
        self.spikes += spike
        self.in_a_row = 0
        self.recent = [*self.recent[-(_WINDOW - 1) :], loss]
        self.start = loss if self.start is None else self.start
        if (smoothed := self.smoothed) is not None and (self.lowest is None or smoothed < self.lowest):
            self.lowest, self.lowest_step, self.lowest_rate = smoothed, step, rate
        return spike

    def evaluate(self, step: int, loss: float, figure: float | None = None) -> bool:
        """Add an evaluation, and say whether it is the best so far; one whose loss is not finite never is.

        Args:
            step: after which it was made.
            loss: the evaluation loss; the less the better.
            figure: of a task, which decides before the loss; the more the better.
        """
        if math.isfinite(loss) and self._beats_best(loss, figure):
            self.best_loss, self.best_figure, self.best_step, self.not_better = loss, figure, step, 0
            return True
        self.not_better += 1
        return False

    def _beats_best(self, loss: float, figure: float | None) -> bool:
        if self.best_loss is None or figure is None or self.best_figure is None or figure == self.best_figure:
            return self.best_loss is None or loss < self.best_loss
        return figure > self.best_figure

    def is_over(self, patience: int | None) -> bool:
        """Whether enough evaluations in a row have not been better."""
        return patience is not None and self.not_better >= patience

    def skip(self) -> None:
        """Add a step that is skipped."""
        self.skipped += 1
        self.in_a_row += 1


@dataclass
class SinceLastLog:
    """Losses of the steps taken since the last line of metrics, and the last of their gradient norms."""

    losses: list[float] = field(default_factory=list)
    norm: float = 0.0

    def add(self, loss: float, norm: float) -> None:
        """Add a step that is taken."""
        self.losses.append(loss)
        self.norm = norm

    def flush(self) -> dict[str, float]:
        """Mean `loss` and last `grad_norm`, then reset; empty if no step was taken."""
        found = {"loss": fmean(self.losses), "grad_norm": self.norm} if self.losses else {}
        self.losses.clear()
        return found
