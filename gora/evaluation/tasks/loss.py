"""The mean loss on rows that were not trained on."""

from __future__ import annotations

import math
from typing import ClassVar

from gora.evaluation.task import Options, Scores, Subject


class Loss:
    """Cross-entropy per supervised token, of a classifier per row, and its exponential."""

    name: ClassVar[str] = "loss"

    def check(self, options: Options) -> None:
        """Which rows there are depends on the subject."""

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Measure the rows; see `Task`."""
        loss, rows = subject.loss(options)
        facts = {"data": options.data or "the run's evaluation rows", "questions": rows}
        return Scores({"loss": loss, "perplexity": math.exp(min(loss, 700.0))}, [], facts)
