"""HumanEval: functions to complete from their signature and docstring (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from gora.evaluation.extraction import function_in
from gora.evaluation.programs import Question, check_kinds, check_options, solve, unix_lines
from gora.evaluation.questions import Questions, read_questions
from gora.evaluation.task import Options, Scores, Subject

_PUBLISHED = "openai/openai_humaneval"
_COLUMNS = dict.fromkeys(("task_id", "prompt", "test", "entry_point"), str)
# What begins a new statement of the module: the function is over.
_STOP = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\n```")


class HumanEval:
    """164 functions, each with tests; `pass@1` is the main figure.

    A model that converses is asked for the function; another continues the prompt as it stands.
    """

    name: ClassVar[str] = "humaneval"

    def check(self, options: Options) -> None:
        """Refuse what cannot work; raises InputError."""
        check_options(self.name, options)
        _read(options)

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask, run and count; raises InputError, and GoraError where programs cannot be run."""
        check_options(self.name, options)
        questions = _read(options)
        scores = solve(subject, [_question(row) for _, row in questions.rows], options, _STOP)
        return replace(scores, facts={**questions.facts, **scores.facts})


def _read(options: Options) -> Questions:
    questions = read_questions(options, _PUBLISHED, columns=list(_COLUMNS))
    check_kinds(questions, _COLUMNS)
    return questions


def _question(row: dict[str, Any]) -> Question:
    prompt, function = unix_lines(row["prompt"]), row["entry_point"]

    def tested(module: str) -> str:
        return f"{module}\n\n{unix_lines(row['test'])}\n\ncheck({function})\n"

    return Question(
        task_id=row["task_id"],
        message=(
            f"Write the body of the Python function `{function}`, so that it does what its docstring says. Answer with "
            "one block of code that holds the whole function and the imports it needs."
            f"\n\n```python\n{prompt.strip()}\n```"
        ),
        text=prompt,
        from_answer=lambda answer: tested(function_in(answer, prompt, function)),
        from_continuation=lambda continuation: tested(prompt + unix_lines(continuation)),
    )
