"""GSM8K: grade-school mathematics, exact match of the final number (Cobbe et al., arXiv 2110.14168)."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar

from gora.errors import InputError
from gora.evaluation.task import Options, Sampling, Scores, Subject
from gora.evaluation.tasks.questions import Questions, read_questions

LONGEST = 512
"""The longest answer in tokens, unless the user says otherwise."""

_NUMBER = re.compile(
    r"(?P<sign>[-\u2212\u2013]\s?)?[$€£]?\s?(?P<minus>[-\u2212])?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?(?:\s?/\s?(?P<below>\d+(?!\.?\d)))?"
)
_FRACTION = re.compile(r"\\d?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}")
_MARKS = (
    # What the set itself writes before an answer: the first one counts, for a model may go on with another question.
    (re.compile(r"####"), 0),
    (re.compile(r"\\boxed\s*\{"), -1),
    (re.compile(r"(?:the|final|my)\s+(?:final\s+)?answer\s*(?:is|=|:)\s*:?", re.IGNORECASE), -1),
    (re.compile(r"\banswer\s*:", re.IGNORECASE), -1),
)


class Gsm8k:
    """Greedy answers to the test questions; the share whose final number is the gold one."""

    name: ClassVar[str] = "gsm8k"

    def check(self, options: Options) -> None:
        """The rows can be read, and every one has an answer to compare with."""
        _questions(options)

    def questions(self, options: Options) -> Questions:
        """The rows that are asked about, each with an answer to compare with; raises InputError."""
        return _questions(options)[0]

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask every question; see `Task`."""
        questions, golds = _questions(options)
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens or LONGEST, temperature=options.temperature or 0.0, seed=options.seed
        )
        answers = subject.ask([[{"role": "user", "content": row["question"]}] for _, row in questions.rows], sampling)
        rows = []
        for (where, row), gold, (answer,) in zip(questions.rows, golds, answers, strict=True):
            found = final_number(answer)
            rows.append(
                {
                    "question": where,
                    "prompt": row["question"],
                    "output": answer,
                    "extracted": _shown(found),
                    "marked": is_marked(answer),
                    "gold": _shown(gold),
                    "correct": found == gold,
                }
            )
        total = len(rows)
        metrics = {
            "exact_match": sum(row["correct"] for row in rows) / total,
            "marked": sum(row["marked"] for row in rows) / total,
        }
        return Scores(metrics, rows, questions.facts)


def _questions(options: Options) -> tuple[Questions, list[Fraction]]:
    questions = read_questions(options, "openai/gsm8k", subset="main", columns=("question", "answer"))
    golds = []
    for where, row in questions.rows:
        gold = final_number(row["answer"])
        if gold is None:
            raise InputError(f"{where}: column 'answer' has no number, so nothing can be compared with it.")
        golds.append(gold)
    return questions, golds


def final_number(text: str) -> Fraction | None:
    """The number that an answer comes to, exactly, or None.

    It is looked for behind `####`, in a `\\boxed{}`, behind "the answer is" or "answer:", in this order, and else is
    the last number of the text. Signs, currencies, thousands, decimals, units and fractions are understood.
    """
    text = _FRACTION.sub(r"\1/\2", text)
    for marked in _behind_marks(text):
        line = marked.strip().split("\n", 1)[0]
        # "5 x 3 = 15": what an equation comes to is at its end.
        numbers = _numbers(line.rpartition("=")[2]) or _numbers(line) or _numbers(marked)
        if numbers:
            return numbers[0]
    return next(iter(reversed(_numbers(text))), None)


def is_marked(text: str) -> bool:
    """Whether an answer says which of its numbers is the final one."""
    return any(_numbers(marked) for marked in _behind_marks(text))


def _behind_marks(text: str) -> list[str]:
    """What stands behind each kind of mark that the text has."""
    found = []
    for mark, which in _MARKS:
        if places := list(mark.finditer(text)):
            found.append(text[places[which].end() :])
    return found


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        if not match["whole"] and not match["decimals"]:
            continue
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
        if match["below"] and int(match["below"]):
            value /= int(match["below"])
        before = text[match.start() - 1] if match.start() else " "
        # In "7-3" and "x-3" the dash is no sign.
        negative = match["minus"] or (match["sign"] and not (before.isalnum() or before in ")%"))
        found.append(-value if negative else value)
    return found


def _shown(value: Fraction | None) -> str | None:
    return None if value is None else str(value.numerator if value.denominator == 1 else float(value))
