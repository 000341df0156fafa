"""Every command of the documentation: read by the command line itself, and run, unless a comment says what it needs.

Before a block of commands there may stand `<!-- needs: hub -->` (or a GPU, two hosts, a judge), or the test that runs
them, `<!-- tested: tests/... -->`.
"""

import io
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from gora.cli import app
from gora.recipe import load_recipe
from gora.recipe.builtin import builtin_paths
from tests.conftest import ROOT
from tests.helpers import forks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"GPU", "hub", "two hosts", "judge"}
MODEL = "meta-llama/Llama-3.2-1B"
SMALL = (
    "data.max_length=160",
    "gora.steps=2",
    "gora.gamma=0.05",
    "train.max_steps=3",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.learning_rate=1e-3",
)


@dataclass(frozen=True)
class Typed:
    """A line of commands: its page, its words, and what stands before its block."""

    page: str
    words: list[str]
    mark: str | None

    def __str__(self):
        return f"{self.page}: {shlex.join(self.words)}"


def split(line):
    """Words of each command of a line, without comments and redirections."""
    words = shlex.split(line, comments=True)
    commands = [[]]
    for word in words:
        if word in ("&&", "|", ">"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands if "&&" in words else commands[:1]


def in_blocks():
    for page in PAGES:
        marked = r"(?:<!-- ((?:needs|tested): [^>]*) -->\n+)?```(?:bash|sh|console)\n(.*?)```"
        for mark, block in re.findall(marked, page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield from (Typed(page.name, words, mark or None) for words in split(line) if words)


def in_sentences():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for code in re.findall(r"`((?:gora|python|bash|torchrun) [^`]+)`", text):
            if "..." not in code and "COMMAND" not in code:
                for words in split(code.replace("\\|", "|").replace("|ADAPTER|MODEL", "")):
                    yield Typed(page.name, words, None)


BLOCKS, SENTENCES = list(in_blocks()), list(in_sentences())


def is_gora(typed):
    return typed.words[0] == "gora"


def resolved(words):
    """The command of these words, with what follows its name."""
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("gora", [], resilient_parsing=True), words)
    while rest and rest[0] in getattr(command, "commands", {}):
        name, command, rest = command.resolve_command(command.make_context(name, [], resilient_parsing=True), rest)
    return name, command, rest


@pytest.mark.parametrize("typed", filter(is_gora, BLOCKS), ids=str)
def test_a_command_in_a_block_is_taken_by_the_command_line_with_its_settings(typed):
    name, command, rest = resolved(typed.words[1:])
    with command.make_context(name, rest) as made:
        recipe = str(made.params.get("recipe"))
    # What a how-to adds is known to its copy of gora only.
    if not (typed.mark or "").startswith("tested"):
        check_settings(typed.words, recipe)


@pytest.mark.parametrize("typed", filter(is_gora, SENTENCES), ids=str)
def test_a_command_in_a_sentence_has_the_options_that_are_named_and_their_settings(typed):
    if typed.words[1].startswith("--"):
        assert typed.words[1] in ("--help", "--version", "--install-completion")
        return
    _, command, rest = resolved(typed.words[1:])
    known = {option for each in command.params for option in each.opts} | {"--help"}
    assert {word for word in rest if word.startswith("--")} <= known
    check_settings(typed.words, typed.words[2] if len(typed.words) > 2 else "")


def check_settings(words, recipe):
    """The settings that are given are the recipe's, with values that it takes."""
    given = []
    for option, value in pairwise(words):
        if option in ("--set", "--vary", "--tune"):
            key, _, values = value.partition("=")
            given += [value] if option == "--set" else [f"{key}={each}" for each in values.split(",")[:1]]
    load_recipe(recipe if recipe in builtin_paths() else "quickstart", given)


def test_scripts_and_targets_that_are_named_are_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = 0
    for typed in (*BLOCKS, *SENTENCES):
        first, *rest = typed.words
        if first == "make":
            assert rest[0] in targets, typed
        elif first in ("python", "bash", "torchrun"):
            files = [word for word in rest if word.startswith("scripts/")]
            modules = [word.replace(".", "/") + ".py" for word in rest if word.startswith("scripts.")]
            assert all((ROOT / file).exists() for file in (*files, *modules)), typed
            seen += bool(files or modules)
    assert seen > 5


def test_what_is_not_run_here_says_why():
    for typed in BLOCKS:
        kind, _, what = (typed.mark or "").partition(": ")
        assert typed.mark is None or (what in NEEDS if kind == "needs" else (ROOT / what).is_file()), typed
        runs = is_gora(typed) or any(word.startswith(("scripts/", "scripts.")) for word in typed.words)
        assert typed.mark or is_gora(typed) or not runs, f"{typed} is not run, and nothing says what it needs"


# Running them


HERE = [typed for typed in BLOCKS if is_gora(typed) and typed.mark is None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the rows, questions, recipe and runs that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "my_rows.jsonl").write_text('{"question": "1+1?", "answer": "It is 2."}\n' * 24)
    (folder / "prompts.txt").write_text("1+1?\n2+2?\n")
    question = {"question": "Which?", "options": ["a trout", "a whale"], "label": 1, "reference": "a whale"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    commands = (
        ("init", "builtin:tiny-6m", "my_rows.jsonl", "--output", "my.yaml"),
        ("run", "my.yaml", *settings),
        ("run", "quickstart", *settings, "--set", "data.eval.max_rows=4", "--set", "data.train.max_rows=16"),
    )
    for command in commands:
        done = forks.run(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("a", "b"):
        shutil.copytree(folder / "runs" / "my" / "adapter", folder / name)
    return folder


def small(words):
    """The same command on the small model, of three steps or one question."""
    verb, *rest = ({MODEL: "builtin:tiny-6m", "RUN": "runs/my"}.get(word, word) for word in words)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    if verb in ("run", "precompute", "train", "compare"):
        rest += settings
    if verb == "run":
        rest += ["--overwrite"]
    if verb == "compare":
        rest += ["--set", "data.eval.max_rows=4", "--set", "evaluation.steps=null"]
    if verb == "eval":
        rest += ["--max-new-tokens", "4", *(() if "--limit" in rest else ("--limit", "1"))]
    if verb == "generate":
        rest += ["--max-new-tokens", "4"]
    return verb, *rest


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({typed.page for typed in HERE}))
def test_the_commands_of_a_page_work(place, page, gora_here, monkeypatch):
    for number, typed in enumerate(typed for typed in HERE if typed.page == page):
        words = small(typed.words[1:])
        if "--output" in words:
            written = place / words[words.index("--output") + 1]
            shutil.rmtree(written, ignore_errors=True)
            if written.is_file() and words[0] == "init":
                written.unlink()
        if words[0] == "init":
            Path(place / "my_rows.yaml").unlink(missing_ok=True)
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        if words[0] == "compare":
            done = forks.compare(*words[1:], "--output", f"comparison-{page}-{number}", cwd=place)
            code, said = done.returncode, done.stdout + done.stderr
        else:
            code, *streams = gora_here(*words, cwd=place)
            said = "".join(streams)
        assert code == 0, f"{typed}\n{said}"
