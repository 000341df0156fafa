"""Rows of the user's with a reference: the text that the model writes has to be the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

from gora.data.messages import described
from gora.errors import InputError
from gora.evaluation.task import Options, Sampling, Scores, Subject
from gora.evaluation.tasks.questions import Questions, read_own

LONGEST = 128
"""The longest answer in tokens, unless the user says otherwise."""
_COLUMNS = {"prompt": "", "answer": "answer"}
_IN_FRONT, _BEHIND = "\"'([{\u201c\u2018", ".,;:!?\"')]}\u201d\u2019"


class Exact:
    """Greedy answers; the share that is a reference, but for case, white space and punctuation around words."""

    name: ClassVar[str] = "exact"

    def check(self, options: Options) -> None:
        """The rows can be read, and every one has a reference."""
        _questions(options)

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask every question; see `Task`."""
        questions, columns, references = _questions(options)
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens or LONGEST, temperature=options.temperature or 0.0, seed=options.seed
        )
        prompts = subject.questions(questions.rows, columns["prompt"] or None)
        rows: list[dict[str, Any]] = []
        for (where, _), right, (answer,) in zip(
            questions.rows, references, subject.complete(prompts, sampling), strict=True
        ):
            rows.append(
                {
                    "question": where,
                    "output": answer,
                    "references": right,
                    "correct": plain(answer) in {plain(text) for text in right},
                    "verbatim": answer.strip() in {text.strip() for text in right},
                }
            )
        metrics = {
            "exact_match": sum(row["correct"] for row in rows) / len(rows),
            "verbatim": sum(row["verbatim"] for row in rows) / len(rows),
        }
        return Scores(metrics, rows, questions.facts)


def plain(text: str) -> str:
    """A text in lower case, its words one space apart, without the punctuation that stands around them.

    What stands within a word stays: 1.5 is not 15, and -5 is not 5.
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(filter(None, (word.lstrip(_IN_FRONT).rstrip(_BEHIND) for word in words)))


def _questions(options: Options) -> tuple[Questions, dict[str, str], list[list[str]]]:
    questions, columns = read_own(options, Exact.name, _COLUMNS)
    return questions, columns, [_references(where, row, columns["answer"]) for where, row in questions.rows]


def _references(where: str, row: dict[str, Any], column: str) -> list[str]:
    if column not in row:
        raise InputError(f"{where} has no column {column!r}: name the one with the reference by --column answer=NAME.")
    value = row[column]
    references = [value] if isinstance(value, str) else value
    if not isinstance(references, Sequence) or not references or not all(isinstance(text, str) for text in references):
        raise InputError(f"{where}: column {column!r} must be text or a list of texts, not {described(value)}.")
    return list(references)
