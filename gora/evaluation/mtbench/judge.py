"""The judge: one request for each answer, several at a time, each judgement kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from gora.evaluation.mtbench.endpoint import Endpoint, Garbled, Refused, Unavailable
from gora.evaluation.mtbench.judgments import HIGHEST, LOWEST, Journal, Judgment, is_rating
from gora.evaluation.mtbench.prompts import Prompt, Prompts
from gora.evaluation.mtbench.questions import Conversation
from gora.evaluation.mtbench.threads import in_threads
from gora.evaluation.task import JudgeSettings, Message
from gora.runtime.console import output
from gora.runtime.progress import Meter

# Source: FastChat, fastchat/llm_judge/common.py.
TEMPERATURE = 0.0
MAX_TOKENS = 2048
_TRIES = 3
_FEWEST_FAILURES = 3
_RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
_RATING_IN_ONE_BRACKET = re.compile(r"rating\W{0,5}\[\s*(-?\d+(?:\.\d+)?)\s*\]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the judge is asked about one answer.

    Attributes:
        question: what the subject was asked.
        turn: which of the two answers is rated, 1 or 2.
        subject: what files call the one who answered.
        prompt: the prompt that is used.
        messages: what is sent.
        fingerprint: of the judge, the prompt and all that it shows: the same request has the same judgement.
    """

    question: Conversation
    turn: int
    subject: str
    prompt: Prompt
    messages: list[Message]
    fingerprint: str


@dataclass(frozen=True)
class Verdicts:
    """What the judge said about all answers.

    Attributes:
        judgments: by question and turn.
        asked: how many requests were answered or given up now; the others were rated before, or were never sent.
        before: how many had been rated before.
    """

    judgments: dict[tuple[int | str, int], Judgment]
    asked: int
    before: int


def requests_for(
    questions: Sequence[Conversation],
    answers: Sequence[tuple[str, str]],
    prompts: Prompts,
    settings: JudgeSettings,
    subject: str,
) -> list[Request]:
    """One request for each turn of each question."""
    requests = []
    for question, both in zip(questions, answers, strict=True):
        for turn in (1, 2):
            prompt, messages = prompts.about(question, both, turn)
            fingerprint = _fingerprint(settings.model, messages)
            requests.append(
                Request(
                    question=question,
                    turn=turn,
                    subject=subject,
                    prompt=prompt,
                    messages=messages,
                    fingerprint=fingerprint,
                )
            )
    return requests


def judge(requests: Sequence[Request], journal: Journal, settings: JudgeSettings) -> Verdicts:
    """Ask for every judgement that the journal does not hold.

    What is finished stays in the journal, however this ends.

    Raises:
        InputError: no request can succeed: the key, the model or the address is wrong.
    """
    rated = {request.fingerprint: known for request in requests if (known := journal.rated(request.fingerprint))}
    # Two answers may be the same word for word; one judgement serves both.
    missing = {request.fingerprint: request for request in requests if request.fingerprint not in rated}
    bench = _Bench(Endpoint(settings), journal, settings)
    before = sum(request.fingerprint in rated for request in requests)
    with Meter(output, "judgements", len(missing)) as meter:
        try:
            with closing(in_threads(bench.judgment, list(missing.values()), settings.parallel)) as coming:
                for request, judgment, tokens in coming:
                    rated[request.fingerprint] = judgment
                    meter.advance(tokens)
        finally:
            bench.endpoint.stop()
    judgments = {(request.question.id, request.turn): rated[request.fingerprint] for request in requests}
    return Verdicts(judgments, bench.asked, before)


def rating_in(text: str) -> float:
    """The rating in what a judge said: the last one, since it is asked to explain itself first.

    Raises:
        Garbled: there is none, or it is not on the scale.
    """
    found = _RATING.findall(text) or _RATING_IN_ONE_BRACKET.findall(text)
    if not found:
        raise Garbled("no rating like [[5]]")
    rating = float(found[-1])
    if not is_rating(rating):
        raise Garbled(f"the rating {found[-1]} is not between {LOWEST} and {HIGHEST}")
    return rating


class _Bench:
    """Where judgements are made; `judgment` runs in several threads."""

    def __init__(self, endpoint: Endpoint, journal: Journal, settings: JudgeSettings) -> None:
        self.endpoint, self.asked = endpoint, 0
        self._journal, self._model = journal, settings.model
        self._patience = max(_FEWEST_FAILURES, settings.parallel)
        self._failures, self._lock = 0, threading.Lock()
        self._given_up: str | None = None

    def judgment(self, request: Request) -> tuple[Request, Judgment, int]:
        """The judgement on one answer, and the tokens it took."""
        if self._given_up is not None:
            return request, Judgment(None, f"not asked, since others failed: {self._given_up}", None), 0
        judgment, tokens = self._ask(request)
        about = {
            "question_id": request.question.id,
            "model": request.subject,
            "judge": [self._model, request.prompt.name],
            "user_prompt": request.messages[-1]["content"],
            "turn": request.turn,
            "tstamp": time.time(),
        }
        self._journal.add(request.fingerprint, judgment, about)
        with self._lock:
            self.asked += 1
        return request, judgment, tokens

    def _ask(self, request: Request) -> tuple[Judgment, int]:
        """A nonsense judgement is asked for again; one that stays nonsense is none."""
        tokens, text, reason = 0, None, ""
        for _ in range(_TRIES):
            try:
                reply = self.endpoint.chat(request.messages, temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
                self._count_failure(None)
                text, tokens = reply.text, tokens + reply.tokens
                return Judgment(rating_in(text), None, text), tokens
            except Garbled as error:
                reason = f"{error}; asked {_TRIES} times"
            except Refused as error:
                return Judgment(None, f"the endpoint refuses the request: {error}", text), tokens
            except Unavailable as error:
                self._count_failure(str(error))
                return Judgment(None, str(error), text), tokens
        return Judgment(None, reason, text), tokens

    def _count_failure(self, reason: str | None) -> None:
        """An endpoint that fails many times in a row is gone: the rest would only wait for nothing."""
        with self._lock:
            self._failures = 0 if reason is None else self._failures + 1
            if self._failures >= self._patience:
                self._given_up = reason


def _fingerprint(model: str, messages: Sequence[Message]) -> str:
    asked = [model, TEMPERATURE, MAX_TOKENS, [dict(message) for message in messages]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
