"""The questions of MT-Bench, and the reference answers that the judge is shown for some of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.assets import resolve
from gora.data.jsonl import read_json
from gora.data.messages import described
from gora.data.rows import Rows
from gora.data.sources import read_rows
from gora.errors import InputError
from gora.recipe.schema import SourceSection

PUBLISHED = "builtin:mt_bench/question.jsonl"
_WITH_REFERENCE = ("math", "reasoning", "coding")
_REFERENCES = Path("reference_answer") / "gpt-4.jsonl"
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Conversation:
    """A question of two turns.

    Attributes:
        id: its number or name.
        category: such as `writing`; it decides the temperature and whether the judge sees a reference answer.
        turns: what is asked first, and what is asked about the answer.
        reference: good answers to both turns, if there are any.
    """

    id: int | str
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether a judge cannot be trusted to know the right answer by itself."""
        return self.category in _WITH_REFERENCE


def read_conversations(data: str | None, limit: int | None) -> list[Conversation]:
    """Read questions, with the reference answers that lie in `reference_answer/gpt-4.jsonl` beside them.

    Args:
        data: hub id, file or folder in FastChat's form; None is the published set.
        limit: read the first questions only; None reads all.

    Raises:
        InputError: they cannot be read, or a row is no question of two turns.
    """
    source = SourceSection(path=data or PUBLISHED, max_rows=limit)
    rows = read_rows(source, ("train", "test"))
    references = _references(data or PUBLISHED)
    problems = [str(bad) for bad in rows.bad]
    questions: dict[int | str, Conversation] = {}
    for index, row in enumerate(rows.rows):
        if fault := _fault(row) or ("its question_id is not its own" if row["question_id"] in questions else ""):
            problems.append(str(rows.unusable(index, fault)))
            continue
        first, second = row["turns"]
        identifier = row["question_id"]
        questions[identifier] = Conversation(identifier, row["category"], (first, second), references.get(identifier))
    _refuse(problems, f"{rows.name} does not hold MT-Bench questions:")
    return list(questions.values())


def require_references(questions: Sequence[Conversation], data: str | None) -> None:
    """Refuse questions that cannot be judged for want of a reference answer.

    Raises:
        InputError: a question in math, reasoning or coding has none.
    """
    missing = [str(question.id) for question in questions if question.needs_reference and question.reference is None]
    if missing:
        named = ", ".join(missing[:_NAMED_AT_MOST]) + (", ..." if len(missing) > _NAMED_AT_MOST else "")
        raise InputError(
            f"{data or PUBLISHED}: the judge needs reference answers in {', '.join(_WITH_REFERENCE)}, and there are "
            f"none to question {named}. Put them into {_REFERENCES} beside the questions, in the form of FastChat's."
        )


def fingerprint(questions: Sequence[Conversation]) -> str:
    """SHA-256 of what is asked; reference answers do not count."""
    asked = [[question.id, question.category, *question.turns] for question in questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _fault(row: dict[str, Any]) -> str:
    if not isinstance(row.get("question_id"), int | str):
        return f"question_id must be a number or a text, and is {described(row.get('question_id'))}"
    if not isinstance(row.get("category"), str):
        return f"category must be a text, and is {described(row.get('category'))}"
    return "" if _is_pair(row.get("turns")) else "turns must be a list of two texts"


def _is_pair(value: Any) -> bool:
    # Columns of a data set arrive as lists too; a row of a CSV file never has one.
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) and text for text in value)


def _references(data: str) -> dict[int | str, tuple[str, str]]:
    place = Path(resolve(data, "data")).expanduser()
    path = (place if place.is_dir() else place.parent) / _REFERENCES
    if not path.is_file():
        return {}
    rows = read_json(path, str(path), None)
    _refuse([str(bad) for bad in rows.bad], f"{path} cannot be used:")
    return dict(_reference(rows, index) for index in range(len(rows.rows)))


def _reference(rows: Rows, index: int) -> tuple[int | str, tuple[str, str]]:
    row = rows.rows[index]
    try:
        identifier, turns = row["question_id"], row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{rows.where(index)}: question_id and two texts in choices[0].turns are expected.") from error
    if not isinstance(identifier, int | str) or not _is_pair(turns):
        raise InputError(f"{rows.where(index)}: question_id and two texts in choices[0].turns are expected.")
    return identifier, (turns[0], turns[1])


def _refuse(problems: Sequence[str], headline: str) -> None:
    if problems:
        more = len(problems) - _NAMED_AT_MOST
        raise InputError(headline, [*problems[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])])
