"""HumanEval and MBPP: what is asked, what is taken from an answer, and what is counted."""

import gzip
import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from gora.errors import InputError
from gora.evaluation.task import Options
from gora.evaluation.tasks import programs
from gora.evaluation.tasks.extraction import code_in, function_in
from gora.evaluation.tasks.fences import fenced_blocks
from gora.evaluation.tasks.humaneval import HumanEval
from gora.evaluation.tasks.mbpp import Mbpp, functions_called
from gora.evaluation.tasks.passk import mean_pass_at_k, pass_at_k
from gora.sandbox.run import Isolation

FIXTURES = Path(__file__).parents[1] / "fixtures"
HUMANEVAL = FIXTURES / "humaneval" / "HumanEval.jsonl.gz"
MBPP = FIXTURES / "mbpp" / "test.jsonl"


def rows_of(path):
    raw = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()]


class Oracle:
    """Answers with what it is given, in the order of the questions."""

    def __init__(self, answers, *, converses):
        self.answers, self.converses = answers, converses
        self.asked, self.sampling = [], None

    def ask(self, conversations, sampling):
        assert self.converses
        return self._answer([conversation[-1]["content"] for conversation in conversations], sampling)

    def complete(self, texts, sampling):
        assert not self.converses
        return self._answer(texts, sampling)

    def _answer(self, texts, sampling):
        self.asked, self.sampling = texts, sampling
        given = [answer if isinstance(answer, list) else [answer] for answer in self.answers]
        return given[: len(texts)]


def options(tmp_path, data, **more):
    return Options(folder=tmp_path, data=str(data), allow_code_execution=True, allow_weak_sandbox=True, **more)


def fenced(code):
    return f"Here is the function.\n\n```python\n{code}\n```\n\nIt does what the docstring says."


# pass@k


@pytest.mark.parametrize("answers", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_with_a_right_answer(answers):
    for right, k in itertools.product(range(answers + 1), range(1, answers + 1)):
        choices = list(itertools.combinations([True] * right + [False] * (answers - right), k))
        assert pass_at_k(answers, right, k) == Fraction(sum(map(any, choices)), len(choices))


def test_pass_at_k_keeps_its_exactness_where_floats_overflow():
    assert pass_at_k(5000, 1, 100) == Fraction(100, 5000)
    assert mean_pass_at_k(200, [0, 200], 100) == 0.5


@pytest.mark.parametrize("case", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_of_impossible_counts_is_refused(case):
    with pytest.raises(ValueError, match="no pass@"):
        pass_at_k(*case)


# What an answer holds

PROMPT = '''from typing import List


def one() -> int:
    return 1


def total(numbers: List[int]) -> int:
    """ Sum of numbers.
    >>> total([1, 2])
    3
    """
'''
BODY = "    result = 0\n    for n in numbers:\n        result += n\n    return result\n"
WHOLE = "def total(numbers: List[int]) -> int:\n" + BODY

ANSWERS = {
    "the rest of the prompt": BODY,
    "the rest without its first indentation": BODY.lstrip(),
    "the rest without any indentation": "result = 0\nfor n in numbers:\n    result += n\nreturn result",
    "the rest, indented by two": "  result = 0\n  for n in numbers:\n    result += n\n  return result",
    "the rest, indented by tabs": "\tresult = 0\n\tfor n in numbers:\n\t\tresult += n\n\treturn result",
    "the rest, then a helper": "    return add(numbers)\n\ndef add(numbers):\n    return sum(numbers)\n",
    "the rest, then talk": BODY + "\nThis adds the numbers up, one after the other.\n",
    "talk, then the rest": "Here is the rest:\n\n" + BODY,
    "talk, then the rest at once": "Here is the rest:\n" + BODY,
    "talk around the rest": "Here is the rest:\n" + BODY + "\nIt's done. Don't thank me.",
    "the rest with windows line ends": BODY.replace("\n", "\r\n"),
    "the whole function": WHOLE,
    "prompt and function": PROMPT + BODY,
    "the whole function, then talk": WHOLE + "\nThis function adds the numbers up.\nIt's simple:\n- one loop\n",
    "the whole function, then a heading": WHOLE + "\nExplanation\n\nThe loop adds the numbers up.\n",
    "talk, then the whole function": "Sure! Here's the function you asked for:\n\n" + WHOLE,
    "imports before the function": "Of course:\nimport math\nfrom functools import reduce\n\n" + WHOLE,
    "a helper before the function": "Of course.\ndef add(a, b):\n    return a + b\n\n"
    "def total(numbers):\n    result = 0\n    for n in numbers:\n        result = add(result, n)\n    return result\n",
    "a decorator before the function": "Of course.\n@staticmethod\n" + WHOLE,
    "the function within a line": "You can write def total(numbers):\n    return sum(numbers)\n\nThat is all!",
    "the function, indented": "\n".join("    " + line for line in WHOLE.splitlines()),
    "one line": "def total(numbers): return sum(numbers)",
    "an assignment": "total = lambda numbers: sum(numbers)",
    "a fence with a language": fenced(WHOLE),
    "a fence with a capital": f"```Python\n{WHOLE}```",
    "a fence without a language": f"```\n{WHOLE}```",
    "a fence that is never closed": f"Answer:\n```python\n{WHOLE}",
    "a fence that is only closed": f"{WHOLE}```\nDone.",
    "a fence of tildes": f"~~~python\n{WHOLE}~~~",
    "a fence of four": f"````python\n{WHOLE}````",
    "a fence in a list": "1. Like so:\n\n   ```python\n"
    + "".join(f"   {line}\n" for line in WHOLE.splitlines())
    + "   ```\n2. Done.",
    "a fence with windows line ends": fenced(WHOLE).replace("\n", "\r\n"),
    "a fence with the rest": fenced(BODY),
    "a fence with the rest, without indentation": fenced("return sum(numbers)"),
    "a fence with the rest after the docstring": fenced('    """ Sum of numbers. """\n' + BODY),
    "a fence with a session": "```\n>>> def total(numbers):\n...     return sum(numbers)\n...\n>>> total([1])\n1\n```",
    "a fence of another language first": f"```bash\npip install numpy\n```\n```python\n{WHOLE}```",
    "examples after the function": fenced(WHOLE) + "\n```python\nprint(total([1, 2, 3]) / 0)\n```",
    "examples before the function": "```python\nassert total([1]) == 2\n```\n" + fenced(WHOLE),
    "the question repeated": f"You asked:\n```python\n{PROMPT}    pass\n```\n" + fenced(WHOLE),
    "the question's docstring repeated": f"```python\n{PROMPT}```\n" + fenced(WHOLE),
    "a helper in a fence of its own": "```python\ndef add(a):\n    return sum(a)\n```\nand\n"
    "```python\ndef total(numbers):\n    return add(numbers)\n```",
    "two solutions": fenced(WHOLE) + "\nOr, slower:\n" + fenced("def total(numbers):\n    while True: pass"),
    "a fence cut off after the function": f"```python\n{WHOLE}\ndef test():\n    assert total([1, 2",
    "a main part": fenced(WHOLE + "\nif __name__ == '__main__':\n    print(total(list(map(int, input().split()))))"),
    "a future import": fenced("from __future__ import annotations\n" + WHOLE),
    "a use of what the prompt has": fenced("def total(numbers):\n    return sum(numbers) * one()"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_function_is_found(answer):
    module = {"__name__": "program"}
    exec(function_in(answer, PROMPT, "total"), module)
    assert (function := module["total"])([1, 2, 3]) == 6
    assert callable(function)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot help with that.",
        "```python\n```",
        "def totals(numbers):\n    return sum(numbers)\n",
        "```python\ndef total(numbers):\n    return sum(numbers)\n    retrun 3\n```",
        "```python\ndef total(numbers):\n    result = sum(numbers\n",
        "class Solution:\n    def total(self, numbers):\n        return sum(numbers)\n",
        "\x00",
    ],
)
def test_an_answer_that_is_no_program_is_not_made_one(answer):
    module = {"__name__": "program"}
    with pytest.raises((SyntaxError, ValueError, TypeError, NameError, AssertionError)):
        exec(function_in(answer, PROMPT, "total"), module)
        assert module["total"]([1, 2, 3]) == 6


def test_code_is_found_by_any_of_its_names():
    assert code_in("So:\n```\nclass Pair:\n    pass\n```", ["make", "Pair"]) == "class Pair:\n    pass\n"
    assert code_in("plain talk", ["make"]) == "plain talk"
    assert code_in("x = 1", []) == "x = 1"


def test_blocks_of_other_languages_count_only_where_there_are_no_others():
    assert fenced_blocks("```js\n1\n```\n```py\n2\n```\n```\n3\n```\n```\n```") == ["2", "3"]
    assert fenced_blocks("```js\n1\n```") == ["1"]
    assert fenced_blocks("no code, only `words`") == []


def test_the_functions_of_assertions_are_found():
    tests = ["assert set(similar((3, 4))) == set((4,))", "assert math.isclose(area(2), 4.0)", "assert not ("]
    assert functions_called(tests) == ["similar", "area"]


# The tasks

CONTINUED = [row["canonical_solution"] for row in rows_of(HUMANEVAL)]
ANSWERED = [fenced(row["prompt"] + row["canonical_solution"]) for row in rows_of(HUMANEVAL)]


@pytest.mark.parametrize(
    ("answers", "converses"),
    [
        pytest.param(CONTINUED, False, id="continued", marks=pytest.mark.slow),
        pytest.param(ANSWERED, True, id="asked"),
    ],
)
def test_the_published_solutions_of_humaneval_pass(tmp_path, answers, converses):
    scores = HumanEval().evaluate(Oracle(answers, converses=converses), options(tmp_path, HUMANEVAL))
    assert [row["task_id"] for row in scores.rows if not row["passed"]] == []
    assert len(scores.rows) == 164
    assert scores.metrics == {"pass@1": 1.0}
    json.dumps([scores.rows, scores.facts])


@pytest.mark.parametrize("converses", [False, True], ids=["continued", "asked"])
def test_the_published_solutions_of_mbpp_pass(tmp_path, converses):
    rows = rows_of(MBPP)
    subject = Oracle([fenced(row["code"]) if converses else row["code"] for row in rows], converses=converses)
    scores = Mbpp().evaluate(subject, options(tmp_path, MBPP))
    assert [row["task_id"] for row in scores.rows if not row["passed"]] == []
    assert scores.metrics == {"pass@1": 1.0}
    assert any(row["test_setup_code"] for row in rows)
    for row, asked in zip(rows, subject.asked, strict=True):
        assert row["text"] in asked
        assert row["test_list"][0] in asked
        assert row["code"] not in asked


def test_a_model_that_converses_is_asked_and_another_one_continues(tmp_path):
    row = rows_of(HUMANEVAL)[0]
    for converses in (False, True):
        subject = Oracle(["pass"], converses=converses)
        scores = HumanEval().evaluate(subject, options(tmp_path, HUMANEVAL, limit=1, max_new_tokens=7, seed=3))
        (asked,) = subject.asked
        assert (asked == row["prompt"]) != converses
        assert row["entry_point"] in asked
        assert ("\ndef " in subject.sampling.stop) != converses
        assert (subject.sampling.max_new_tokens, subject.sampling.temperature, subject.sampling.seed) == (7, 0.0, 3)
        assert scores.metrics == {"pass@1": 0.0}
        assert scores.facts["questions"] == 1
        assert scores.facts["isolation"]


def test_several_samples_are_drawn_and_counted(tmp_path):
    right = CONTINUED[0]
    answers = [[right] * 3 + ["    return 7\n"] * 7, ["    return 7\n"] * 10]
    subject = Oracle(answers, converses=False)
    scores = HumanEval().evaluate(subject, options(tmp_path, HUMANEVAL, limit=2, samples=10))
    assert (subject.sampling.samples, subject.sampling.temperature) == (10, 0.8)
    assert scores.metrics == {"pass@1": pytest.approx(0.15), "pass@10": 0.5}
    first, second = scores.rows
    assert (first["passed"], second["passed"]) == (3, 0)
    assert [verdict["outcome"] for verdict in first["verdicts"]] == ["passed"] * 3 + ["failed"] * 7
    assert first["verdicts"][-1]["detail"].startswith("AssertionError")
    assert first["answers"] == answers[0]


@pytest.mark.parametrize("task", [HumanEval(), Mbpp()], ids=lambda task: task.name)
def test_a_sandbox_that_lacks_walls_is_used_only_where_the_user_allows_it(tmp_path, monkeypatch, task):
    monkeypatch.setattr(programs, "isolation", lambda: Isolation(frozenset({"seccomp", "guard"}), as_root=True))
    asked = options(tmp_path, FIXTURES / task.name)
    with pytest.raises(InputError, match="--allow-weak-sandbox") as refused:
        task.check(replace(asked, allow_weak_sandbox=False))
    told = " ".join(refused.value.problems)
    assert all(words in told for words in ("Seccomp", "no namespaces", "no Landlock", "remain root"))
    task.check(asked)
    monkeypatch.setattr(programs, "isolation", lambda: Isolation(frozenset({"namespaces", "landlock", "seccomp"})))
    task.check(replace(asked, allow_weak_sandbox=False))


@pytest.mark.parametrize("task", [HumanEval(), Mbpp()], ids=lambda task: task.name)
def test_programs_are_run_only_where_the_user_allows_it(tmp_path, task):
    with pytest.raises(InputError, match="--allow-code-execution"):
        task.check(Options(folder=tmp_path, data=str(FIXTURES / task.name)))
    with pytest.raises(InputError, match="--allow-code-execution"):
        task.evaluate(Oracle([], converses=True), Options(folder=tmp_path, data=str(FIXTURES / task.name)))
    task.check(options(tmp_path, FIXTURES / task.name))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"samples": 0}, "samples must be"),
        ({"limit": 0}, "limit must be"),
        ({"samples": 2, "temperature": 0.0}, "all the same"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        HumanEval().check(options(tmp_path, HUMANEVAL, **more))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (HumanEval(), {"entry_point": ...}, "'entry_point'"),
        (HumanEval(), {"test": None}, "'test' holds null"),
        (Mbpp(), {"test_list": ...}, "'test_list'"),
        (Mbpp(), {"test_list": "assert True"}, "'test_list' holds the text"),
        (Mbpp(), {"test_list": []}, "'test_list' must be"),
        (Mbpp(), {"test_list": [1]}, "'test_list' must be"),
    ],
)
def test_rows_that_lack_something_are_refused_with_place_and_column(tmp_path, task, change, message):
    first, second = rows_of(HUMANEVAL if task.name == "humaneval" else MBPP)[:2]
    second.update(change)
    path = tmp_path / "rows.jsonl"
    lines = [{key: value for key, value in row.items() if value is not ...} for row in (first, second)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message) as refused:
        task.check(options(tmp_path, path))
    assert "rows.jsonl:2" in str(refused.value)
