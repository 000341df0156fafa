"""A word with a model: a conversation on the terminal, or answers to given prompts."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from gora.errors import InputError
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.task import Sampling
from gora.files import parse_json
from gora.runtime.console import output
from gora.runtime.interrupt import StopSignal
from gora.runtime.quiet import quiet_libraries

_HELP = "/reset starts over, /system TEXT sets the system message, /exit or Ctrl-D ends, Ctrl-C ends an answer."
Message = dict[str, str]


def chat(
    reference: str,
    sampling: Sampling,
    *,
    system: str | None = None,
    beside_base: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Talk with a run, an adapter or a model in the prompt format that it was trained on, until the input ends.

    Args:
        reference: see `find_subject`.
        sampling: how answers are generated.
        system: what the conversation begins with.
        beside_base: also answer without what was trained.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: it cannot be loaded, has no place for a question, or has no adapter that can be left out.
    """
    speaker = _load(reference, beside_base, trust_remote_code)
    if not speaker.subject.converses:
        raise InputError(
            f"{reference} was trained on no conversation ({speaker.subject.prompting.title}). Give a text to continue: "
            "`gora generate --raw --prompt TEXT`."
        )
    output.say(f"format    {speaker.subject.prompting.title}. {_HELP}")
    turns = _begin(system)
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            turns = _begin(system)
            output.say("(the conversation starts over)")
        elif line.startswith("/system"):
            system = line.removeprefix("/system").strip() or None
            turns = _begin(system)
            output.say("(the conversation starts over with this system message)" if system else "(no system message)")
        elif line.startswith("/"):
            output.say(_HELP)
        elif line:
            turns = _take_turn(speaker, turns, line, sampling)


def generate(
    reference: str,
    sampling: Sampling,
    *,
    prompts: list[str],
    file: Path | None = None,
    raw: bool = False,
    beside_base: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Answer prompts, each in a conversation of its own: one on the terminal as it comes, several as JSON lines.

    Args:
        reference: see `find_subject`.
        sampling: how answers are generated.
        prompts: questions.
        file: more of them: lines of text, or of JSON with `prompt` (`.jsonl`).
        raw: continue the texts as they stand, without the prompt format that the model was trained on.
        beside_base: also answer without what was trained.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: there is no prompt, or the model cannot be loaded or has no place for a question.
    """
    asked = [*prompts, *(_read(file) if file else [])]
    if not asked:
        raise InputError("There is nothing to answer: give --prompt TEXT or --file FILE.")
    speaker = _load(reference, beside_base, trust_remote_code)
    plain = raw or speaker.subject.prompting.data is None
    alone = file is None and len(asked) == 1
    for prompt in asked:
        ids = speaker.ids(prompt) if plain else speaker.ids_of([{"role": "user", "content": prompt}])
        row = {"prompt": prompt}
        for name, base in speaker.ways:
            if alone and beside_base:
                print(f"[{name}]", flush=True)
            row[name] = speaker.answer(ids, sampling, _print if alone else _nothing, base=base)
            if alone:
                print(flush=True)
        if not alone:
            print(json.dumps(row, ensure_ascii=False), flush=True)


class _Speaker:
    """A subject that answers piece by piece, with and without what was trained."""

    def __init__(self, subject: LocalSubject, generator: Generator, ways: list[tuple[str, bool]]) -> None:
        self.subject, self._generator, self.ways = subject, generator, ways

    def ids(self, text: str) -> list[int]:
        return self.subject.prompting.ids([text])[0]

    def ids_of(self, turns: list[Message]) -> list[int]:
        return self.ids(self.subject.prompting.conversation(turns))

    def answer(self, ids: list[int], sampling: Sampling, say: Callable[[str], None], *, base: bool) -> str:
        return self._generator.stream(ids, sampling, say, base=base)


def _load(reference: str, beside_base: bool, trust_remote_code: bool) -> _Speaker:
    quiet_libraries()
    named = find_subject(reference)
    if beside_base and named.adapter is None:
        raise InputError(f"--base: {reference} has no adapter that could be left out.")
    with output.terminal.status("loading the model"):
        subject = load_subject(named, trust_remote_code=trust_remote_code)
    if not isinstance(subject.backend, Generator):
        raise InputError(f"{reference} has a head that classifies: it generates no text. `gora eval` asks it.")
    ways = [("answer", False), ("base", True)] if beside_base else [("answer", False)]
    return _Speaker(subject, subject.backend, ways)


def _take_turn(speaker: _Speaker, turns: list[Message], line: str, sampling: Sampling) -> list[Message]:
    """Ask, and answer; the conversation continues with the trained model's answer, also one that was interrupted."""
    asked = [*turns, {"role": "user", "content": line}]
    ids, told = speaker.ids_of(asked), {}
    for name, base in speaker.ways:
        if len(speaker.ways) > 1:
            print(f"[{name}]", flush=True)
        pieces: list[str] = []

        def say(piece: str, pieces: list[str] = pieces) -> None:
            pieces.append(piece)
            _print(piece)

        try:
            speaker.answer(ids, sampling, say, base=base)
        except StopSignal as stop:
            if stop.number != signal.SIGINT:
                raise
        told[name] = "".join(pieces)
        print("\n", flush=True)
    if not told["answer"].strip():
        output.say("(no answer: the conversation may fill the context; /reset starts over)")
        return turns
    return [*asked, {"role": "assistant", "content": told["answer"]}]


def _begin(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _lines() -> Iterator[str]:
    """What is typed, line by line, with a history where it is typed; or what a pipe holds."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited, and come again
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        yield line.strip()


def _read(file: Path) -> list[str]:
    try:
        # A line ends with a line feed alone: U+2028 and its like are characters of a prompt.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"--file {file} cannot be read: {error.strerror or error}.") from None
    except ValueError:
        raise InputError(f"--file {file} is not UTF-8 text. Save it as UTF-8.") from None
    written = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not written:
        raise InputError(f"--file {file} holds no prompts. Write one in each line.")
    return [_prompt(file, *place) if file.suffix == ".jsonl" else place[1] for place in written]


def _prompt(file: Path, number: int, line: str) -> str:
    try:
        prompt = parse_json(line)["prompt"]
    except (ValueError, TypeError, KeyError):
        prompt = None
    if not isinstance(prompt, str):
        raise InputError(f'{file}:{number}: a line such as {{"prompt": "..."}} is expected.')
    return prompt


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def _nothing(_: str) -> None:
    pass
