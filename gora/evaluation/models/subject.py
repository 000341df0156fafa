"""A subject whose answers are generated here, by one process or by several that share the questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from gora.data import LabelledText
from gora.data.prompting import Prompting
from gora.data.rows import Unusable
from gora.errors import InputError
from gora.evaluation.models.seeing import OfImages
from gora.evaluation.task import Message, Options, Recognised, Sampling
from gora.runtime.console import output
from gora.runtime.progress import Meter
from gora.runtime.world import World

T = TypeVar("T")
_LABEL_TOKENS = 16


class Backend(Protocol):
    """What generates."""

    @property
    def facts(self) -> dict[str, Any]:
        """What somebody needs to know to generate the same."""

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> list[list[str]]:
        """Texts that go on from prompts of token ids; `base` leaves the adapter out."""

    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> list[float]:
        """Log-likelihoods in nats of the second ids of pairs behind the first; `base` leaves the adapter out.

        Raises InputError where there are none to be had.
        """


class DistributedBackend:
    """A backend whose processes share the prompts: process 0 asks, the others answer until it has finished.

    Args:
        backend: the one of this process.
        world: the processes.
    """

    def __init__(self, backend: Backend, world: World) -> None:
        self._backend, self._world = backend, world

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the backend, and how many processes there are."""
        return {**self._backend.facts, "processes": self._world.size}

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> list[list[str]]:
        """See `Backend`; for process 0."""
        job = {"asked": list(prompts), "sampling": asdict(sampling), "base": base}
        return self._shared(job, advance)

    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> list[float]:
        """See `Backend`; for process 0."""
        return self._shared({"asked": list(pairs), "sampling": None, "base": base}, advance)

    def serve(self) -> None:
        """Answer what process 0 asks, in all other processes, until it calls `close`."""
        while self._take_part(None, lambda done, tokens: None) is not None:
            pass

    def close(self) -> None:
        """Let the other processes go."""
        self._world.from_main(lambda: None)

    def _shared(self, job: dict[str, Any], advance: Callable[[int, int], None]) -> list[Any]:
        size = self._world.size
        return self._take_part(job, lambda done, tokens: advance(done * size, tokens * size)) or []

    def _take_part(self, job: dict[str, Any] | None, advance: Callable[[int, int], None]) -> list[Any] | None:
        told = self._world.from_main(lambda: job)
        if told is None:
            return None
        # Neighbours are often of similar length: dealt out in turn, every process gets some of each.
        mine, base = told["asked"][self._world.index :: self._world.size], told["base"]
        found: list[Any]
        if told["sampling"] is None:
            found = self._backend.likelihoods(mine, advance, base=base)
        else:
            sampling = Sampling(**{**told["sampling"], "stop": tuple(told["sampling"]["stop"])})
            found = self._backend.generate(mine, sampling, advance, base=base)
        answers: list[Any] = [None for _ in told["asked"]]
        for rank, share in enumerate(self._world.gather(found)):
            answers[rank :: self._world.size] = share
        return answers


@dataclass(frozen=True, kw_only=True)
class LocalSubject:
    """A model with or without its adapter; see `Subject`.

    Attributes:
        prompting: the form it was trained on.
        backend: generates.
        fingerprint: of weights and form, or None where they cannot be told from others.
        measure: the mean loss on the rows of options, and how many they are, of the base if it is told so; None where
            the backend has no losses.
        classify: the numbers of labels, of a model with a head for them.
        see: what is recognised in the images of options; None where it is a model of text.
        base: leave the adapter out.
        close: gives back what the backend holds outside of this process's memory.
    """

    prompting: Prompting | OfImages
    backend: Backend
    fingerprint: str | None = None
    measure: Callable[[Options, bool], tuple[float, int]] | None = None
    classify: Callable[[Sequence[LabelledText], bool], list[int]] | None = None
    see: Callable[[Options, bool], Recognised] | None = None
    base: bool = False
    close: Callable[[], None] = field(default=lambda: None)

    @property
    def identity(self) -> str | None:
        """What answers depend on besides the questions and the sampling; None where that is not known."""
        return f"{self.fingerprint}{'-base' if self.base else ''}" if self.fingerprint else None

    @property
    def converses(self) -> bool:
        """See `Subject`."""
        return self.prompting.converses

    def ask(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[list[str]]:
        """See `Subject`."""
        return self.complete([self.prompting.conversation(messages) for messages in conversations], sampling)

    def complete(self, texts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """See `Subject`."""
        with Meter(output, "answers", len(texts)) as meter:

            def advance(answered: int, tokens: int) -> None:
                meter.advance(tokens, steps=answered)

            return self.backend.generate(self.prompting.ids(texts), sampling, advance, base=self.base)

    def label(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[int | None, str]]:
        """See `Subject`: a classifier's label, or the one whose text is generated."""
        if self.classify is not None:
            numbers = self.classify([_read(self.prompting.labelled, *row) for row in rows], self.base)
            return [(number, self.prompting.choices[number]) for number in numbers]
        choices = [choice.strip() for choice in self.prompting.choices]
        answers = [
            answer.strip()
            for (answer,) in self.complete(self.row_prompts(rows), Sampling(max_new_tokens=_LABEL_TOKENS))
        ]
        return [(choices.index(answer) if answer in choices else None, answer) for answer in answers]

    def questions(self, rows: Sequence[tuple[str, Mapping[str, Any]]], column: str | None) -> list[str]:
        """See `Subject`."""
        return [_read(lambda row: self.prompting.question(row, column), *row) for row in rows]

    def likelihoods(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `Subject`."""
        pairs = [(prompt, answer) for prompt, some in zip(prompts, answers, strict=True) for answer in some]
        with Meter(output, "answers", len(pairs)) as meter:

            def advance(answered: int, tokens: int) -> None:
                meter.advance(tokens, steps=answered)

            found = iter(self.backend.likelihoods(self.prompting.answers(pairs), advance, base=self.base))
        return [[next(found) for _ in some] for some in answers]

    @property
    def choices(self) -> list[str]:
        """See `Subject`."""
        return self.prompting.choices

    def row_prompts(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """The texts before the responses to rows, of which the place of each is given.

        Raises:
            InputError: a row lacks something that the form asks for.
        """
        return [_read(self.prompting.row, *row) for row in rows]

    def recognise(self, options: Options) -> Recognised:
        """See `Subject`."""
        if self.see is None:
            raise InputError(f"--task image: this model has no image head ({self.prompting.title}).")
        return self.see(options, self.base)

    def loss(self, options: Options) -> tuple[float, int]:
        """See `Subject`."""
        if self.measure is None:
            raise InputError("This backend only generates; losses need --backend hf.")
        return self.measure(options, self.base)


def _read(read: Callable[[Mapping[str, Any]], T], where: str, row: Mapping[str, Any]) -> T:
    try:
        return read(row)
    except Unusable as fault:
        raise InputError(f"{where}: {fault}.") from fault
