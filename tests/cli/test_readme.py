"""What the README says can be typed, can be typed, and what it says is so. Its scripts run as slow tests and as CI."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import support_table

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
MODEL = "meta-llama/Llama-3.2-1B"
SMALL = ("gora.steps=2", "train.max_steps=2", "train.batch_size=4", "train.learning_rate=1e-3", "gora.gamma=0.05")


def commands(text):
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("gora ")]


def settings(*more):
    return [part for setting in (*SMALL, *more) for part in ("--set", setting)]


def test_your_own_model_and_rows_go_from_nothing_to_an_answer(tmp_path, gora_here):
    """The same commands, in order, on the model that ships."""
    typed = commands("\n".join(block for kind, block in BLOCKS if kind == "bash"))
    assert [words[0] for words in typed] == ["run", "init", "check", "run", "chat"]
    (tmp_path / "my_rows.jsonl").write_text('{"question": "1+1?", "answer": "It is 2."}\n' * 24)
    for words in typed[:-1]:
        here = ["builtin:tiny-6m" if word == MODEL else word for word in words]
        code, out, err = gora_here(*here, *(settings() if words[0] != "check" else ()), cwd=tmp_path)
        assert code == 0, out + err
    assert (tmp_path / "runs" / "my_rows" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "my" / "merged" / "model.safetensors").is_file()
    code, out, err = gora_here("generate", "runs/my", "--prompt", "2+2?", "--max-new-tokens", "4", cwd=tmp_path)
    assert code == 0, out + err


def test_the_command_for_several_processes_works(tmp_path):
    (typed,) = re.findall(r"`gora (run quickstart --processes[^`]*)`", README)
    small = settings(
        "train.micro_batch_size=2", "data.train.max_rows=16", "data.eval.max_rows=8", "evaluation.steps=null"
    )
    command = [sys.executable, "-m", "gora", *shlex.split(typed), *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data parallelism, 2 processes" in done.stdout
    assert (tmp_path / "runs" / "quickstart" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_lines_for_your_own_data_are_a_valid_recipe(tmp_path):
    from gora.recipe import load_recipe

    shown = next(yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(shown))
    assert load_recipe(str(tmp_path / "my.yaml")).recipe.data.prompt == "question"


def test_what_is_supported_is_written_from_the_code():
    assert support_table.with_table(README) == README, "run scripts/docs/support_table.py"
    assert len(README.splitlines()) <= 120


def test_the_end_of_the_quickstart_has_the_lines_of_a_run():
    shown = re.findall(r"^│ ([a-z, ]+?) +│", next(block for kind, block in BLOCKS if kind == "text"), re.MULTILINE)
    source = (ROOT / "gora" / "stages" / "run.py").read_text()
    assert all(f'"{name}"' in source for name in shown)


def test_every_page_that_is_linked_is_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text()):
            assert link in ("messages.md",) or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_rooms_of_the_architecture_page_are_those_of_the_package():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Rooms")[2].partition("## The run folder")[0]
    named = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    packages = {path.parent.name for path in (ROOT / "gora").glob("*/__init__.py")}
    assert packages <= named


def test_the_commands_that_are_documented_are_those_there_are():
    import typer

    from gora.cli import app

    page = (ROOT / "docs" / "commands.md").read_text()
    assert set(re.findall(r"^\| `gora ([\w-]+)", page, re.MULTILINE)) == set(typer.main.get_command(app).commands)


@pytest.mark.slow
def test_the_quickstart_script_works_in_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "gora")], check=True)
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"], cwd=tmp_path / "gora", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "with the base model" in done.stdout
