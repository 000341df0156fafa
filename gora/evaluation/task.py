"""What an evaluation is: a task asks, a subject answers, and every figure comes with the rows it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Message = Mapping[str, str]
"""A turn of a conversation: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 takes the likeliest token each time (greedy).
        top_p: share of the probability, from the likeliest token down, that is drawn from.
        samples: answers to each question; more than one needs a temperature.
        seed: of the sampling.
        stop: an answer ends before the first of these texts.
    """

    max_new_tokens: int
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What a model saw in images.

    Attributes:
        names: of the classes, by their numbers.
        places: where each image came from.
        truth: the number of its class.
        found: the number of the class that was seen.
    """

    names: Sequence[str]
    places: Sequence[str]
    truth: Sequence[int]
    found: Sequence[int]


class Subject(Protocol):
    """What is evaluated: a model, or a base model with an adapter."""

    @property
    def converses(self) -> bool:
        """Whether it was trained on a form for instructions; otherwise texts are only continued."""

    def ask(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[list[str]]:
        """Answers to the last turn of each conversation, `sampling.samples` of each, in the form it was trained on."""

    def complete(self, texts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """Continuations of texts as they stand, `sampling.samples` of each."""

    def questions(self, rows: Sequence[tuple[str, Mapping[str, Any]]], column: str | None) -> list[str]:
        """The texts before the answers to rows, of which the place of each is given, in the form it was trained on.

        `column` holds the question; None is the one that was trained. Raises InputError for a row without it.
        """

    def likelihoods(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood in nats of each of some answers to each prompt, without what ends an answer.

        Raises InputError where it only generates, or does not write text.
        """

    @property
    def choices(self) -> list[str]:
        """The names of the labels that it was trained on; raises InputError where there are none."""

    def label(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[int | None, str]]:
        """For rows of a classification that it was trained on, and the place of each: the label's number and text.

        Without a number the text is none of the labels. Raises InputError where it was trained on none.
        """

    def recognise(self, options: Options) -> Recognised:
        """What it sees in the images that the options name, else in those of its own run.

        Raises InputError where it sees none.
        """

    def loss(self, options: Options) -> tuple[float, int]:
        """Mean loss in nats on the rows that the options name, else on those of its own run, and how many they are."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A model behind an OpenAI-compatible endpoint that rates answers.

    Attributes:
        base_url: what `/chat/completions` is added to, such as `https://api.openai.com/v1`.
        model: what the endpoint calls the judge.
        api_key_env: the environment variable with the key; the usual one may be unset.
        parallel: requests at a time.
        prompts: a file of judge prompts; None takes FastChat's where it is installed, else gora's own.
        timeout: seconds for which the endpoint may be silent.
        retries: further tries of a request that failed for a reason that may pass.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    parallel: int = 4
    prompts: Path | None = None
    timeout: float = 120.0
    retries: int = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user may say about an evaluation.

    Attributes:
        folder: where the task may keep files of its own; it exists.
        data: hub id, file or folder of the questions; None is the published set.
        limit: ask the first questions only; None asks all.
        seed: of whatever is drawn.
        samples: answers to each question, where the task can use several.
        temperature: see `Sampling`; None is the task's own.
        max_new_tokens: longest answer; None is the task's own.
        columns: names of the data's columns, for tasks that take rows of any kind: `prompt`, `choices`, `answer`.
        allow_code_execution: whether programs that a model wrote may run here.
        allow_weak_sandbox: also where the system lacks walls of the sandbox.
        judge: who rates answers that no rule can; None leaves them unrated.
        model_name: what files call the model that is evaluated.
        model_fingerprint: text that no other weights and no other form of instructions share; None where it is not
            known, and then answers of an earlier evaluation are never taken for this model's.
    """

    folder: Path
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    samples: int = 1
    temperature: float | None = None
    max_new_tokens: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    allow_code_execution: bool = False
    allow_weak_sandbox: bool = False
    judge: JudgeSettings | None = None
    model_name: str = "model"
    model_fingerprint: str | None = None


@dataclass(frozen=True)
class Scores:
    """What came of an evaluation.

    Attributes:
        metrics: figures by name, the main one first; shares lie between 0 and 1.
        rows: one object a question: what was asked, what was answered, what was made of it.
        facts: what else is needed to repeat it, such as the data's fingerprint and the sampling.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A way to ask and to score."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    def check(self, options: Options) -> None:
        """Refuse what cannot work before a model is loaded; raises InputError."""

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask the subject and score what it answers; raises InputError."""


@dataclass(frozen=True)
class Labelled:
    """A task under another name, where it is asked of several sets.

    Attributes:
        task: what asks and scores.
        name: what results call it.
    """

    task: Task
    name: str

    def check(self, options: Options) -> None:
        """See `Task`."""
        self.task.check(options)

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """See `Task`."""
        return self.task.evaluate(subject, options)
