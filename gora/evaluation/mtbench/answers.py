"""What the subject answers, in FastChat's file format; answers are kept, and taken again for the same subject only."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.evaluation.mtbench.questions import Conversation, fingerprint
from gora.evaluation.task import Message, Options, Sampling, Subject
from gora.files import read_json, write_json, write_text
from gora.runtime.console import output

# Source: FastChat, fastchat/llm_judge/common.py and gen_model_answer.py.
_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
_OTHER_TEMPERATURE = 0.7
_MAX_NEW_TOKENS = 1024
_FORMAT = 1


@dataclass(frozen=True)
class Answers:
    """Answers to both turns of every question.

    Attributes:
        turns: both answers to each question, in the order of the questions.
        path: the file that holds them.
        facts: what they depend on: questions, model, sampling.
        reused: whether an earlier evaluation generated them.
    """

    turns: list[tuple[str, str]]
    path: Path
    facts: dict[str, Any]
    reused: bool


def answers_to(questions: Sequence[Conversation], subject: Subject, options: Options) -> Answers:
    """The subject's answers: those in the task's folder if they are this subject's, else newly generated ones.

    Answers of another model, to other questions or with another sampling stay in the folder under another name.
    """
    path, facts = options.folder / "model_answer.jsonl", _facts(questions, options)
    if path.exists():
        if (known := _known(path, facts)) is not None:
            output.say(f"answers   {path} holds them already")
            return Answers(known, path, facts, reused=True)
        output.say(f"answers   of another model or sampling, or changed since, are now in {_set_aside(path)}")
    turns = _ask(questions, subject, options)
    text = "".join(f"{line}\n" for line in _lines(questions, turns, options.model_name))
    # The facts come first: without the answers they name they say nothing, and answers without facts say too little.
    write_json(_beside(path), {**facts, "answers_sha256": _sha256(text)})
    write_text(path, text)
    return Answers(turns, path, facts, reused=False)


def _facts(questions: Sequence[Conversation], options: Options) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "questions": len(questions),
        "questions_sha256": fingerprint(questions),
        "model": options.model_name,
        "model_fingerprint": options.model_fingerprint,
        "sampling": {
            "temperature": {question.category: _sampling(question, options).temperature for question in questions},
            "max_new_tokens": options.max_new_tokens or _MAX_NEW_TOKENS,
            "samples": 1,
            "seed": options.seed,
        },
    }


def _sampling(question: Conversation, options: Options) -> Sampling:
    temperature = options.temperature
    if temperature is None:
        temperature = _TEMPERATURES.get(question.category, _OTHER_TEMPERATURE)
    return Sampling(
        max_new_tokens=options.max_new_tokens or _MAX_NEW_TOKENS, temperature=temperature, seed=options.seed
    )


def _ask(questions: Sequence[Conversation], subject: Subject, options: Options) -> list[tuple[str, str]]:
    samplings = [_sampling(question, options) for question in questions]
    conversations: list[list[Message]] = [[_said("user", question.turns[0])] for question in questions]
    first = _ask_all(subject, conversations, samplings)
    for conversation, question, answer in zip(conversations, questions, first, strict=True):
        conversation += [_said("assistant", answer), _said("user", question.turns[1])]
    return list(zip(first, _ask_all(subject, conversations, samplings), strict=True))


def _ask_all(subject: Subject, conversations: list[list[Message]], samplings: list[Sampling]) -> list[str]:
    """An answer to each conversation; those of one sampling are asked together."""
    answers = [""] * len(conversations)
    for sampling in dict.fromkeys(samplings):
        chosen = [index for index, wanted in enumerate(samplings) if wanted == sampling]
        said = subject.ask([conversations[index] for index in chosen], sampling)
        for index, (answer,) in zip(chosen, said, strict=True):
            answers[index] = answer
    return answers


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _lines(questions: Sequence[Conversation], turns: Sequence[tuple[str, str]], model: str) -> Iterable[str]:
    for question, both in zip(questions, turns, strict=True):
        identity = _sha256(json.dumps([question.id, model, both]))[:22]
        choices = [{"index": 0, "turns": list(both)}]
        line = {"question_id": question.id, "answer_id": identity, "model_id": model, "choices": choices}
        yield json.dumps({**line, "tstamp": time.time()})


def _known(path: Path, facts: dict[str, Any]) -> list[tuple[str, str]] | None:
    """The answers in the file, if they depend on the same facts and nobody has changed them since."""
    if facts["model_fingerprint"] is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        kept = read_json(_beside(path))
    except (FileNotFoundError, ValueError):
        return None
    if kept != {**facts, "answers_sha256": _sha256(text)}:
        return None
    both = [json.loads(line)["choices"][0]["turns"] for line in text.splitlines()]
    return [(first, second) for first, second in both]


def _set_aside(path: Path) -> Path:
    other = path.with_name(f"model_answer.{_sha256(path.read_text(encoding='utf-8', errors='replace'))[:8]}.jsonl")
    if _beside(path).exists():
        os.replace(_beside(path), _beside(other))
    os.replace(path, other)
    return other


def _beside(path: Path) -> Path:
    """Where the facts lie that the answers in a file depend on."""
    return path.with_suffix(".json")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
