"""HumanEval: functions to complete from their signature and docstring (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from typing import Any, ClassVar

from gora.evaluation.task import Options
from gora.evaluation.tasks.extraction import function_in
from gora.evaluation.tasks.programs import ProgramTask, Question, check_kinds, unix_lines
from gora.evaluation.tasks.questions import Questions, read_questions

_PUBLISHED = "openai/openai_humaneval"
_COLUMNS = dict.fromkeys(("task_id", "prompt", "test", "entry_point"), str)


class HumanEval(ProgramTask):
    """164 functions, each with tests."""

    name: ClassVar[str] = "humaneval"
    stop: ClassVar[tuple[str, ...]] = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\n```")

    def read(self, options: Options) -> Questions:
        """See `ProgramTask`."""
        questions = read_questions(options, _PUBLISHED, columns=list(_COLUMNS))
        check_kinds(questions, _COLUMNS)
        return questions

    def question(self, row: dict[str, Any]) -> Question:
        """See `ProgramTask`."""
        prompt, function = unix_lines(row["prompt"]), row["entry_point"]

        def tested(module: str) -> str:
            return f"{module}\n\n{unix_lines(row['test'])}\n\ncheck({function})\n"

        return Question(
            task_id=row["task_id"],
            message=(
                f"Write the body of the Python function `{function}`, so that it does what its docstring says. "
                "Answer with one block of code that holds the whole function and the imports it needs."
                f"\n\n```python\n{prompt.strip()}\n```"
            ),
            text=prompt,
            from_answer=lambda answer: tested(function_in(answer, prompt, function)),
            from_continuation=lambda continuation: tested(prompt + unix_lines(continuation)),
        )
