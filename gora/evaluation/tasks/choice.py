"""Rows of the user's with choices: the one that the model finds likeliest, against the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gora.data.choices import choice_of
from gora.data.messages import described
from gora.data.rows import Unusable
from gora.errors import InputError
from gora.evaluation.task import Options, Scores, Subject
from gora.evaluation.tasks.questions import Questions, read_own

_COLUMNS = {"prompt": "", "choices": "choices", "answer": "answer"}


@dataclass(frozen=True)
class _Asked:
    """The choices of a row, and the number of the right one."""

    choices: Sequence[str]
    answer: int


class Choice:
    """The likeliest of each row's choices; nothing is generated, so that a model need not have learned any form.

    `accuracy` takes the choice with the greatest log-likelihood, `accuracy_norm` that with the greatest for each of its
    bytes, as in lm-eval's `acc` and `acc_norm`: the first prefers short choices.
    """

    name: ClassVar[str] = "choice"

    def check(self, options: Options) -> None:
        """The rows can be read, and those with choices of their own have a right one."""
        questions, columns = read_own(options, self.name, _COLUMNS)
        for where, row in questions.rows:
            if columns["choices"] in row:
                _asked(where, row, columns, [])

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Compare the choices of every row; see `Task`."""
        questions, columns = read_own(options, self.name, _COLUMNS)
        trained = [] if _have(questions, columns["choices"]) else subject.choices
        asked = [_asked(where, row, columns, trained) for where, row in questions.rows]
        prompts = subject.questions(questions.rows, columns["prompt"] or None)
        found = subject.likelihoods(prompts, [one.choices for one in asked])
        rows = [
            _scored(where, one, likelihoods)
            for (where, _), one, likelihoods in zip(questions.rows, asked, found, strict=True)
        ]
        metrics = {
            "accuracy": sum(row["correct"] for row in rows) / len(rows),
            "accuracy_norm": sum(row["correct_norm"] for row in rows) / len(rows),
        }
        chance = sum(1 / len(one.choices) for one in asked) / len(rows)
        return Scores(metrics, rows, {**questions.facts, "chance": chance})


def _have(questions: Questions, column: str) -> bool:
    return all(column in row for _, row in questions.rows)


def _asked(where: str, row: dict[str, Any], columns: dict[str, str], trained: Sequence[str]) -> _Asked:
    """Raises InputError where the row has no right choice."""
    choices = row.get(columns["choices"], trained)
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        what = f"must be a list of at least two texts, not {described(choices)}"
        raise InputError(f"{where}: column {columns['choices']!r} {what}.")
    if bad := [choice for choice in choices if not isinstance(choice, str) or not choice.strip()]:
        raise InputError(f"{where}: column {columns['choices']!r} must hold texts, not {described(bad[0])}.")
    try:
        return _Asked(choices, choice_of(row, columns["answer"], choices, typed=True))
    except Unusable as fault:
        raise InputError(f"{where}: {fault}. Name the columns with --column answer=NAME, choices=NAME.") from fault


def _scored(where: str, asked: _Asked, likelihoods: list[float]) -> dict[str, Any]:
    of_bytes = [value / len(text.encode()) for value, text in zip(likelihoods, asked.choices, strict=True)]
    likeliest, normed = (max(range(len(values)), key=values.__getitem__) for values in (likelihoods, of_bytes))
    return {
        "question": where,
        "choices": list(asked.choices),
        "log_likelihoods": [round(value, 4) for value in likelihoods],
        "predicted": likeliest,
        "label": asked.answer,
        "correct": likeliest == asked.answer,
        "correct_norm": normed == asked.answer,
    }
