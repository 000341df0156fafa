"""How the judge is asked: FastChat's prompts if they are there, else gora's own; scores of the two do not compare."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from gora.assets import resolve
from gora.data.jsonl import read_json
from gora.data.messages import described, siblings_like
from gora.errors import InputError
from gora.evaluation.mtbench.questions import Conversation
from gora.evaluation.task import Message

_OWN = "builtin:mt_bench.jsonl"
_IN_FASTCHAT = Path("llm_judge") / "data" / "judge_prompts.jsonl"
_ONE, _BOTH = ("question", "answer"), ("question_1", "answer_1", "question_2", "answer_2")
# Source: FastChat's judge_prompts.jsonl, whose names and fields these are; the second of each is what is rated.
_FIELDS = {
    "single-v1": (_ONE, "answer"),
    "single-math-v1": ((*_ONE, "ref_answer_1", "ref_answer_2"), "answer"),
    "single-v1-multi-turn": (_BOTH, "answer_2"),
    "single-math-v1-multi-turn": ((*_BOTH, "ref_answer_1", "ref_answer_2"), "answer_2"),
}


@dataclass(frozen=True)
class Prompt:
    """What the judge is told, with fields for what is judged."""

    name: str
    system: str
    template: str


@dataclass(frozen=True)
class Prompts:
    """The prompts of one file.

    Attributes:
        origin: whose they are: `gora`, `fastchat 0.2.36`, or the file that was named.
        sha256: of the file.
        named: each prompt by its name in FastChat's file.
    """

    origin: str
    sha256: str
    named: dict[str, Prompt]

    def about(self, question: Conversation, answers: tuple[str, str], turn: int) -> tuple[Prompt, list[Message]]:
        """The prompt for an answer, and what the judge is sent.

        Args:
            question: what was asked.
            answers: the answers to both turns.
            turn: which of them is rated, 1 or 2.
        """
        kind = "single-math-v1" if question.needs_reference else "single-v1"
        prompt = self.named[kind if turn == 1 else f"{kind}-multi-turn"]
        content = prompt.template.format(**_values(question, answers, turn))
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return prompt, [*system, {"role": "user", "content": content}]


def read_prompts(named: Path | None) -> Prompts:
    """Read the prompts of the named file, of an installed FastChat, or gora's own, whichever is there first.

    Raises:
        InputError: the file cannot be read or lacks a prompt for single-answer grading.
    """
    if named is not None:
        path = named.expanduser()
        if not path.is_file():
            raise InputError(f"Judge prompts: {named} does not exist{siblings_like(str(named)) or '.'}")
        return _read(path, str(named))
    if (installed := _installed()) is not None:
        return _read(installed, f"fastchat {_version()}")
    return _read(Path(resolve(_OWN, "judges")), "gora")


def _read(path: Path, origin: str) -> Prompts:
    rows = read_json(path, str(path), None)
    found = {name: row for row in rows.rows if isinstance(name := row.get("name"), str)}
    if missing := [name for name in _FIELDS if name not in found]:
        raise InputError(
            f"{path} holds no judge prompts for single-answer grading: {', '.join(missing)} missing. FastChat's are in "
            "fastchat/llm_judge/data/judge_prompts.jsonl.",
            [str(bad) for bad in rows.bad],
        )
    prompts = {name: _prompt(name, found[name], path) for name in _FIELDS}
    return Prompts(origin, hashlib.sha256(path.read_bytes()).hexdigest(), prompts)


def _prompt(name: str, row: dict[str, Any], path: Path) -> Prompt:
    system, template = row.get("system_prompt"), row.get("prompt_template")
    for key, value in (("system_prompt", system), ("prompt_template", template)):
        if not isinstance(value, str):
            raise InputError(f"{path}: {key} of {name} must be a text, and is {described(value)}.")
    fields, rated = _FIELDS[name]
    try:
        used = {field for _, field, _, _ in Formatter().parse(str(template)) if field is not None}
    except ValueError as error:
        raise InputError(f"{path}: prompt_template of {name}: {error}. A brace of its own is written twice.") from error
    if unknown := sorted(used - set(fields)):
        raise InputError(f"{path}: prompt_template of {name} has no field {unknown[0]!r}. Known: {', '.join(fields)}.")
    if rated not in used:
        raise InputError(f"{path}: prompt_template of {name} never shows what is rated, {{{rated}}}.")
    return Prompt(name, str(system), str(template))


def _values(question: Conversation, answers: tuple[str, str], turn: int) -> dict[str, str]:
    values = {"question": question.turns[0], "answer": answers[0]}
    if turn == 2:
        values = {f"question_{n}": question.turns[n - 1] for n in (1, 2)}
        values |= {f"answer_{n}": answers[n - 1] for n in (1, 2)}
    if question.reference is not None:
        values |= {f"ref_answer_{n}": question.reference[n - 1] for n in (1, 2)}
    return values


def _installed() -> Path | None:
    """FastChat's file, if the package is installed with it; nothing of the package is run."""
    package = importlib.util.find_spec("fastchat")
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (path := Path(folder) / _IN_FASTCHAT).is_file():
            return path
    return None


def _version() -> str:
    try:
        return importlib.metadata.version("fschat")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
