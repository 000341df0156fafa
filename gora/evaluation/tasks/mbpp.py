"""MBPP: small functions from a sentence and the tests they must pass (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable
from typing import Any, ClassVar

from gora.errors import InputError
from gora.evaluation.task import Options
from gora.evaluation.tasks.extraction import code_in
from gora.evaluation.tasks.programs import ProgramTask, Question, check_kinds, unix_lines
from gora.evaluation.tasks.questions import Questions, read_questions

_PUBLISHED = "google-research-datasets/mbpp"
_SUBSET = "full"
_COLUMNS: dict[str, type | tuple[type, ...]] = {
    "task_id": (int, str),
    "text": str,
    "test_list": list,
    "test_setup_code": str,
}


class Mbpp(ProgramTask):
    """500 problems, each with three tests, which are shown. No solved examples are given, unlike in the paper."""

    name: ClassVar[str] = "mbpp"
    stop: ClassVar[tuple[str, ...]] = ("\nassert ", '\n"""', "\nif ", "\nprint(", "\n```")

    def read(self, options: Options) -> Questions:
        """See `ProgramTask`."""
        questions = read_questions(options, _PUBLISHED, columns=list(_COLUMNS), subset=_SUBSET)
        check_kinds(questions, _COLUMNS)
        for where, row in questions.rows:
            if not row["test_list"] or not all(isinstance(test, str) for test in row["test_list"]):
                raise InputError(f"{where}: column 'test_list' must be a list of texts, with one at least.")
        return questions

    def question(self, row: dict[str, Any]) -> Question:
        """See `ProgramTask`."""
        text = unix_lines(row["text"]).strip()
        tests = [unix_lines(test) for test in row["test_list"]]
        shown = "\n".join(tests)

        def tested(code: str) -> str:
            return "\n\n".join([code, unix_lines(row["test_setup_code"]), shown]) + "\n"

        names = functions_called(tests)
        return Question(
            task_id=str(row["task_id"]),
            message=(
                f"{text}\n\nThese tests call it by its name and have to pass:\n\n```python\n{shown}\n```\n\n"
                "Answer with one block of Python code: the solution with its imports, without the tests."
            ),
            text=f'"""\n{text}\n{shown}\n"""\n',
            from_answer=lambda answer: tested(code_in(answer, names)),
            from_continuation=lambda continuation: tested(unix_lines(continuation)),
        )


def functions_called(tests: Iterable[str]) -> list[str]:
    """The functions that assertions call, in their order, less those that Python has anyway."""
    names: dict[str, None] = {}
    for test in tests:
        try:
            tree = ast.parse(test.strip())
        except SyntaxError:
            continue
        called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        names.update(dict.fromkeys(func.id for func in called if isinstance(func, ast.Name)))
    return [name for name in names if not hasattr(builtins, name)]
