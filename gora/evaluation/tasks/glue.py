"""Classification tasks of GLUE, by the text that is generated or by the head of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gora.data.messages import described
from gora.errors import InputError
from gora.evaluation.task import Options, Scores, Subject
from gora.evaluation.tasks.metrics import Label, accuracy, f1, matthews
from gora.evaluation.tasks.questions import Questions, read_questions

_PUBLISHED = "nyu-mll/glue"
_SPLITS = ("validation_matched", "validation")
Metric = Callable[[Sequence[Label], Sequence[int]], float]
_ACCURACY: dict[str, Metric] = {"accuracy": accuracy}
_METRICS: dict[str, dict[str, Metric]] = {
    "cola": {"matthews": matthews, **_ACCURACY},
    "mnli": _ACCURACY,
    "mrpc": {**_ACCURACY, "f1": f1},
    "qnli": _ACCURACY,
    "qqp": {**_ACCURACY, "f1": f1},
    "rte": _ACCURACY,
    "sst2": _ACCURACY,
    "wnli": _ACCURACY,
}
"""GLUE's own metrics of each task, the first one its main one; CoLA's accuracy is what the paper's Table 1 reports."""


class Glue:
    """One task of GLUE.

    Args:
        subset: its name there.
    """

    def __init__(self, subset: str) -> None:
        self._subset = subset

    @property
    def name(self) -> str:
        """`glue/sst2`."""
        return f"glue/{self._subset}"

    def check(self, options: Options) -> None:
        """The rows can be read, and every one has the number of a label."""
        self._questions(options)

    def questions(self, options: Options) -> Questions:
        """The rows that are asked about, each with the number of a label; raises InputError."""
        return self._questions(options)[0]

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Label the validation rows; see `Task`."""
        questions, golds = self._questions(options)
        labels = subject.label(questions.rows)
        predicted = [label for label, _ in labels]
        rows = [
            {**row, "question": where, "output": answer, "predicted": label, "correct": label == row["label"]}
            for (where, row), (label, answer) in zip(questions.rows, labels, strict=True)
        ]
        metrics = {name: metric(predicted, golds) for name, metric in _METRICS[self._subset].items()}
        return Scores(metrics, rows, {**questions.facts, "no_label": predicted.count(None)})

    def _questions(self, options: Options) -> tuple[Questions, list[int]]:
        questions = read_questions(options, _PUBLISHED, subset=self._subset, columns=("label",), splits=_SPLITS)
        return questions, [_gold(where, row["label"]) for where, row in questions.rows]


def glue_tasks() -> list[Glue]:
    """All of them."""
    return [Glue(subset) for subset in _METRICS]


def _gold(where: str, label: Any) -> int:
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise InputError(f"{where}: column 'label' must be the number of a class, not {described(label)}.")
    return label
