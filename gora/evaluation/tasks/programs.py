"""What tasks have in common whose answers are programs: the asking, the running, and pass@k."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from gora.data.messages import described
from gora.errors import InputError
from gora.evaluation.task import Options, Sampling, Scores, Subject
from gora.evaluation.tasks.passk import mean_pass_at_k
from gora.evaluation.tasks.questions import Questions
from gora.runtime.console import output
from gora.runtime.progress import Meter
from gora.sandbox.run import Limits, isolation, run_programs

_MAX_NEW_TOKENS = 512
_TEMPERATURE_OF_SEVERAL = 0.8
_LARGER_K = (10, 100)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Something to program.

    Attributes:
        task_id: its name in the data.
        message: how a model that converses is asked.
        text: what a model that does not is given to continue.
        from_answer: makes a program with its tests of an answer to `message`.
        from_continuation: makes one of a continuation of `text`.
    """

    task_id: str
    message: str
    text: str
    from_answer: Callable[[str], str]
    from_continuation: Callable[[str], str]


class ProgramTask:
    """A task whose answers are programs; `pass@1` is the main figure.

    A model that converses is asked for them; another continues a text.
    """

    name: ClassVar[str]
    stop: ClassVar[tuple[str, ...]]
    """What ends a continuation: it begins something that is no part of the program."""

    def read(self, options: Options) -> Questions:
        """The rows that are asked about; raises InputError."""
        raise NotImplementedError

    def question(self, row: dict[str, Any]) -> Question:
        """What one of them asks."""
        raise NotImplementedError

    def check(self, options: Options) -> None:
        """Refuse what cannot work; raises InputError."""
        _check_options(self.name, options)
        self.read(options)

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask, run and count; raises InputError, and GoraError where programs cannot be run."""
        _check_options(self.name, options)
        questions = self.read(options)
        scores = _solve(subject, [self.question(row) for _, row in questions.rows], options, self.stop)
        return replace(scores, facts={**questions.facts, **scores.facts})


def _check_options(task: str, options: Options) -> None:
    if not options.allow_code_execution:
        raise InputError(
            f"{task} runs programs that the model writes, and nobody has read them. They are kept apart from the rest "
            "of this system as far as it allows (docs/code-execution.md). Add --allow-code-execution to run them."
        )
    if not options.allow_weak_sandbox and not (found := isolation()).complete:
        raise InputError(
            f"{task} is not run: the sandbox of this system is not complete. Add --allow-weak-sandbox to run programs "
            "in it all the same, or run gora in a virtual machine (docs/code-execution.md).",
            found.words(),
        )
    problems = []
    if options.samples < 1:
        problems.append(f"samples must be 1 or more, not {options.samples}.")
    if options.limit is not None and options.limit < 1:
        problems.append(f"limit must be 1 or more, not {options.limit}.")
    if options.samples > 1 and options.temperature == 0:
        problems.append(f"{options.samples} samples at temperature 0 are all the same. Raise the temperature.")
    if problems:
        raise InputError(f"{task} cannot be evaluated like this.", problems)


def check_kinds(questions: Questions, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Refuse rows whose columns hold something else than they should; raises InputError naming place and column."""
    for where, row in questions.rows:
        for name, kind in kinds.items():
            if not isinstance(row[name], kind):
                raise InputError(f"{where}: column {name!r} holds {described(row[name])}, which cannot be used.")


def _solve(subject: Subject, questions: Sequence[Question], options: Options, stop: tuple[str, ...]) -> Scores:
    sampling = _sampling(options, () if subject.converses else stop)
    (output.say if isolation().complete else output.warn)(" ".join(isolation().words()))
    answers = _answers(subject, questions, sampling)
    programs = [
        question.from_answer(answer) if subject.converses else question.from_continuation(answer)
        for question, some in zip(questions, answers, strict=True)
        for answer in some
    ]
    limits = Limits()
    with Meter(output, "programs", len(programs)) as meter:
        verdicts = iter(run_programs(programs, limits, meter.advance))
    rows = [
        {
            "task_id": question.task_id,
            "prompt": question.message if subject.converses else question.text,
            "answers": some,
            "verdicts": (own := [asdict(next(verdicts)) for _ in some]),
            "passed": sum(verdict["outcome"] == "passed" for verdict in own),
        }
        for question, some in zip(questions, answers, strict=True)
    ]
    facts = {
        "prompt_format": "conversation" if subject.converses else "continuation",
        "sampling": asdict(sampling),
        "limits": asdict(limits),
        "isolation": isolation().words(),
    }
    return Scores(_metrics([row["passed"] for row in rows], sampling.samples), rows, facts)


def unix_lines(text: str) -> str:
    """Text whose lines end in line feeds alone."""
    return text.replace("\r\n", "\n")


def _sampling(options: Options, stop: tuple[str, ...]) -> Sampling:
    default = _TEMPERATURE_OF_SEVERAL if options.samples > 1 else 0.0
    return Sampling(
        max_new_tokens=options.max_new_tokens or _MAX_NEW_TOKENS,
        temperature=default if options.temperature is None else options.temperature,
        samples=options.samples,
        seed=options.seed,
        stop=stop,
    )


def _answers(subject: Subject, questions: Sequence[Question], sampling: Sampling) -> list[list[str]]:
    if subject.converses:
        return subject.ask([[{"role": "user", "content": question.message}] for question in questions], sampling)
    return subject.complete([question.text for question in questions], sampling)


def _metrics(right: list[int], samples: int) -> dict[str, float]:
    return {f"pass@{k}": mean_pass_at_k(samples, right, k) for k in (1, *_LARGER_K) if k <= samples}
