"""What the README says can be typed, can be typed. The two scripts themselves run as the slow test and as CI."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands(first):
    lines = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(first)]


def gora(arguments, cwd):
    command = [sys.executable, "-m", "gora", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_commands_of_a_first_real_use_work_up_to_the_hub(tmp_path):
    """The same commands, in order, on the recipe with model and rows exchanged for those that ship."""
    (tmp_path / "my_rows.jsonl").write_text('{"query": "1+1?", "response": "It is 2."}\n' * 24)
    offline = {
        "model.name": "builtin:tiny-6m",
        "model.dtype": "auto",
        "data.train.path": "my_rows.jsonl",
        "data.holdout": "8",
        "gora.steps": "2",
    }
    overrides = [part for key, value in offline.items() for part in ("--set", f"{key}={value}")]
    typed = [arguments[1:] for arguments in commands("gora ") if "my.yaml" in arguments]
    assert [arguments[0] for arguments in typed] == ["recipes", "precompute", "run"]
    for arguments in typed:
        done = gora(arguments if arguments[0] == "recipes" else [*arguments, *overrides], tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "my" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "my" / "merged" / "model.safetensors").is_file()


def test_the_command_for_several_processes_works(tmp_path):
    (typed,) = [arguments[1:] for arguments in commands("gora ") if "--processes" in arguments]
    small = [part for key in ("gora.steps=3", "train.max_steps=2", "data.eval.max_rows=8") for part in ("--set", key)]
    done = gora([*typed, *small], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data parallelism, 2 processes" in done.stdout
    assert (tmp_path / "runs" / "quickstart" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_lines_for_your_own_data_are_a_valid_recipe(tmp_path):
    from gora.recipe import load_recipe

    shown = next(yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}, **shown}))
    assert load_recipe(str(tmp_path / "my.yaml")).recipe.data.prompt == "question"


def test_the_map_names_folders_that_exist_and_misses_none():
    named = set(re.findall(r"`((?:gora/)?[\w.]+/)`", README.partition("## Map")[2]))
    assert all((ROOT / name).is_dir() for name in named)
    packages = {f"gora/{path.parent.name}/" for path in (ROOT / "gora").glob("*/__init__.py")}
    assert packages <= named


def test_the_verbs_are_those_of_the_command(tmp_path):
    table = set(re.findall(r"^\| `gora ([\w-]+)", README, re.MULTILINE))
    groups = gora(["--help"], tmp_path).stdout.partition("\nTrain:\n")[2]
    shown = set(re.findall(r"^  ([\w-]+)  ", groups, re.MULTILINE))
    assert table == shown


@pytest.mark.slow
def test_the_quickstart_script_works_in_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "gora")], check=True)
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"], cwd=tmp_path / "gora", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "with the base model" in done.stdout
