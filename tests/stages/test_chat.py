"""A word with a model: what is said is what evaluation would get, piece by piece."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from gora.errors import InputError
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.task import Sampling
from gora.recipe import load_recipe
from gora.runtime.interrupt import StopSignal
from gora.stages import chat as stage
from gora.stages.train import train

GREEDY = Sampling(max_new_tokens=12)
QUESTION = "Tom has three apples. He buys two. How many apples has Tom?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps at a rate that shows."""
    folder = tmp_path_factory.mktemp("chat") / "run"
    settings = ("data.train.max_rows=32", "data.eval=null", "adapter.method=lora", "train.learning_rate=0.01")
    train(load_recipe("quickstart", [*settings, "evaluation.steps=null", f"output={folder}"]).recipe)
    return folder


@pytest.fixture(scope="module")
def subject(run):
    return load_subject(find_subject(str(run)))


def asked(subject, *turns, base=False):
    """The answer that an evaluation gets."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    prompts = subject.prompting.ids([subject.prompting.conversation(messages)])
    return subject.backend.generate(prompts, GREEDY, lambda *_: None, base=base)[0][0]


@pytest.fixture
def typing(monkeypatch):
    """What is typed, line by line, up to the end of the input."""

    def type_(*lines):
        waiting = iter(lines)

        def read(_):
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)

    return type_


def test_one_prompt_is_answered_piece_by_piece_as_evaluation_gets_it(run, subject, monkeypatch, capsys):
    pieces = []
    monkeypatch.setattr(stage, "_print", pieces.append)
    stage.generate(str(run), GREEDY, prompts=[QUESTION])
    assert len(pieces) > 3
    assert "".join(pieces) == asked(subject, QUESTION)


def test_the_base_answers_beside_it(run, subject, capsys):
    stage.generate(str(run), GREEDY, prompts=[QUESTION], beside_base=True)
    written = capsys.readouterr().out
    trained, base = asked(subject, QUESTION), asked(subject, QUESTION, base=True)
    assert trained != base
    assert written.endswith(f"[answer]\n{trained}\n[base]\n{base}\n")


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_file_of_prompts_is_answered_in_lines_of_json(run, subject, tmp_path, capsys, ending):
    """Editors put a byte order mark first, and characters that end lines for Python alone stay in their prompt."""
    prompts = [QUESTION, "What is two\u2028and two?"]
    file = tmp_path / f"prompts.{ending}"
    lines = prompts if ending == "txt" else [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    file.write_text("\n".join([lines[0], "", lines[1]]) + "\n", encoding="utf-8-sig")
    stage.generate(str(run), GREEDY, prompts=[], file=file)
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line.startswith("{")]
    assert rows == [{"prompt": prompt, "answer": asked(subject, prompt)} for prompt in prompts]


def test_a_conversation_remembers_until_it_starts_over(run, subject, typing, capsys):
    typing(QUESTION, "And two more?", "/reset", QUESTION, "/exit", "never read")
    stage.chat(str(run), GREEDY)
    written = capsys.readouterr().out
    first = asked(subject, QUESTION)
    second = asked(subject, QUESTION, first, "And two more?")
    assert written.count(f"{first}\n") == 2
    assert f"{first}\n\n{second}\n\n(the conversation starts over)\n{first}\n" in written


def test_a_system_message_stands_before_the_question(run, subject, typing, capsys):
    typing("/system Answer in one word.", QUESTION)
    stage.chat(str(run), GREEDY)
    turns = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": QUESTION}]
    prompts = subject.prompting.ids([subject.prompting.conversation(turns)])
    (answer,) = subject.backend.generate(prompts, GREEDY, lambda *_: None, base=False)[0]
    assert answer in capsys.readouterr().out


def test_ctrl_c_ends_an_answer_and_not_the_conversation(run, typing, monkeypatch, capsys):
    said = []

    def say(piece):
        said.append(piece)
        if len(said) == 2:
            raise StopSignal(signal.SIGINT)

    typing(QUESTION, QUESTION)
    monkeypatch.setattr(stage, "_print", say)
    stage.chat(str(run), GREEDY)
    assert len(said) > 4


@pytest.mark.parametrize("content", ["no json", '{"text": "x"}', "[1]"])
def test_a_line_without_a_prompt_is_named(run, tmp_path, content):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n' + content + "\n")
    with pytest.raises(InputError, match=r"prompts\.jsonl:2: a line such as"):
        stage.generate(str(run), GREEDY, prompts=[], file=tmp_path / "prompts.jsonl")


def test_what_cannot_be_asked_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="nothing to answer"):
        stage.generate(str(run), GREEDY, prompts=[])
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"blank\.txt holds no prompts\. Write one in each line"):
        stage.generate(str(run), GREEDY, prompts=[], file=tmp_path / "blank.txt")
    with pytest.raises(InputError, match="no adapter that could be left out"):
        stage.generate("builtin:tiny-6m", GREEDY, prompts=["x"], beside_base=True)
    with pytest.raises(InputError, match="trained on no conversation"):
        stage.chat("builtin:tiny-6m", GREEDY)


def test_a_model_without_a_form_continues_the_text(capsys):
    stage.generate("builtin:tiny-6m", GREEDY, prompts=["Once upon a time"])
    subject = load_subject(find_subject("builtin:tiny-6m"))
    prompts = subject.prompting.ids(["Once upon a time"])
    (answer,) = subject.backend.generate(prompts, GREEDY, lambda *_: None, base=False)[0]
    assert capsys.readouterr().out.endswith(f"{answer}\n")


def test_a_terminal_is_answered_until_its_end(run, subject):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gora", "chat", str(run), "--max-new-tokens", "12"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    written = ""

    def read_until(sign):
        nonlocal written
        while sign not in written:
            written += os.read(ours, 4096).decode().replace("\r\n", "\n")
        seen, _, written = written.partition(sign)
        return seen

    try:
        read_until("> ")
        os.write(ours, QUESTION.encode() + b"\n")
        answer = asked(subject, QUESTION)
        assert answer.splitlines()[0] in read_until("\n\n") + "\n"
        read_until("> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
