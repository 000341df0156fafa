"""Whose a run folder is: nothing foreign is deleted or written over, and one command at a time writes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gora.errors import InputError
from gora.runs.folder import RunFolder
from gora.runs.owner import LOCK, MARKER, holding_for_workers, is_owned, mark, owning, refuse_what_cannot_be_taken
from gora.runs.replacing import clear_run, clear_training, refuse_foreign_files, refuse_links
from tests.conftest import ROOT

HOLDER = """
import sys
from pathlib import Path
from gora.runs.owner import owning
with owning(Path(sys.argv[1]), command="gora train"):
    print("held", flush=True)
    sys.stdin.read()
"""
LAUNCHER = """
import subprocess, sys
from pathlib import Path
from gora.runs.owner import holding_for_workers
with holding_for_workers(Path(sys.argv[1]), command="gora run"):
    # Its input is that of this process, which outlives it.
    worker = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
    print(worker.pid, flush=True)
    worker.wait()
"""


def start(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def foreign(tmp_path):
    """A user's own folder, with names that a run uses too."""
    folder = tmp_path / "project"
    for name in (
        "evaluation/my_eval.py",
        "merged/notes.txt",
        "checkpoints/llama/weights.bin",
        "recipe.yaml",
        "log.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"my own {name}")
    return folder


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)], ids=["new", "overwrite", "resume"])
@pytest.mark.parametrize("verb", ["run", "precompute", "train"])
def test_a_folder_that_is_not_gora_s_is_refused_and_nothing_in_it_is_touched(gora_here, foreign, verb, more):
    before = content(foreign)
    code, _, told = gora_here(verb, "quickstart", "--set", f"output={foreign}", *more, cwd=foreign.parent)
    assert code == 2
    assert "not a folder of gora's" in told
    assert "--set output=" in told
    assert content(foreign) == before


def test_comparisons_and_evaluations_refuse_such_a_folder_too(gora_here, foreign):
    before, questions = content(foreign), ("--task", "gsm8k", "--data", "builtin:gsm8k/test.jsonl", "--limit", "1")
    answers = [
        gora_here("compare", "quickstart", "--methods", "lora", "--output", foreign, cwd=foreign.parent),
        gora_here("compare", "quickstart", "--methods", "lora", "--set", f"output={foreign}", cwd=foreign.parent),
        gora_here("eval", "builtin:tiny-6m", *questions, "--output", foreign, cwd=foreign.parent),
    ]
    for code, _, told in answers:
        assert code == 2
        assert "not a folder of gora's" in told
    assert content(foreign) == before


def test_the_current_folder_with_the_user_s_recipe_is_refused(gora_here, tmp_path):
    (tmp_path / "recipe.yaml").write_text("extends: quickstart\noutput: .  # my comment\n")
    code, _, _ = gora_here("run", "recipe.yaml", cwd=tmp_path)
    assert code == 2
    assert content(tmp_path) == {"recipe.yaml": b"extends: quickstart\noutput: .  # my comment\n"}


def test_a_new_and_an_empty_folder_become_gora_s_and_a_refused_command_leaves_no_new_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        with owning(tmp_path / name, command="gora run"):
            (tmp_path / name / "recipe.yaml").write_text("x")
        assert is_owned(tmp_path / name)
    with pytest.raises(InputError, match="no such row"), owning(tmp_path / "refused", command="gora run"):
        raise InputError("no such row")
    assert not (tmp_path / "refused").exists()


def test_a_second_command_is_told_who_holds_the_folder_and_goes_on_once_it_was_killed(tmp_path):
    folder = tmp_path / "run"
    holder = start(HOLDER, folder)
    assert holder.stdout.readline() == "held\n"
    (folder / "log.txt").write_text("")
    told = pytest.raises(InputError, match=rf"in use by `gora train` \(host .*, process {holder.pid}, since 20")
    with told, owning(folder, command="gora run"):
        pass
    holder.kill()
    holder.wait()
    with owning(folder, command="gora run"):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()


def test_workers_hold_the_folder_when_their_launcher_is_killed(tmp_path):
    folder = tmp_path / "run"
    launcher = start(LAUNCHER, folder, HOLDER)
    worker = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "held\n"
    launcher.kill()
    launcher.wait()
    with pytest.raises(InputError, match=f"in use by `gora run`.*process {launcher.pid}"), owning(folder, command="x"):
        pass
    os.kill(worker, signal.SIGKILL)
    # The worker is an orphan, which init reaps; its pipe closes when it has ended.
    launcher.stdout.read()
    with owning(folder, command="gora run"):
        pass


def test_a_process_holds_its_folder_through_commands_inside_one_another(tmp_path):
    with owning(tmp_path / "run", command="gora run"):
        with owning(tmp_path / "run", command="gora eval"):
            pass
        other = start(HOLDER, tmp_path / "run")
        assert other.stdout.readline() == ""
        assert other.wait() == 1
    with holding_for_workers(tmp_path / "run", command="gora run"):
        pass


def test_readers_take_no_lock(gora_here, tmp_path):
    from gora.evaluation.models.locate import find_subject

    with owning(tmp_path / "run", command="gora run"):
        with pytest.raises(InputError, match="no such plan file"):
            from gora.plan import read_plan

            read_plan(tmp_path / "run" / "plan.safetensors")
        with pytest.raises(InputError, match="neither a run"):
            find_subject(str(tmp_path / "run"))


def test_a_link_to_a_folder_is_followed_and_one_to_nothing_refused(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with owning(tmp_path / "run", command="gora run"):
        (tmp_path / "run" / "recipe.yaml").write_text("x")
        other = start(HOLDER, tmp_path / "disk")
        assert other.wait() == 1
    assert (tmp_path / "disk" / MARKER).exists()
    told = pytest.raises(InputError, match=r"link to .*gone, which does not exist")
    with told, owning(tmp_path / "nowhere", command="gora run"):
        pass


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "merged", "evaluation", "plan.safetensors"])
def test_a_link_inside_a_run_folder_is_refused(tmp_path, name):
    mark(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{name}: a link in a run folder"):
        refuse_links(RunFolder(tmp_path / "run"))


@pytest.fixture
def used(tmp_path):
    """A folder of gora's with what a run leaves, into which its user has put files."""
    folder = RunFolder(tmp_path / "run")
    mark(folder.path)
    for name in (
        "adapter/adapter_model.safetensors",
        "checkpoints/checkpoint-3/optimizer.pt",
        "checkpoints/llama-pretrained/weights.bin",
        "evaluation/gsm8k-trained/rows.jsonl",
        "merged/model.safetensors",
        "results.json",
        "plan.safetensors",
        "gradients/state.json",
        "log.txt",
        "notes.txt",
    ):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("{}")
    return folder


def test_only_known_names_are_deleted(used):
    refuse_foreign_files(used)
    clear_training(used)
    left = {"plan.safetensors", "gradients/state.json", "log.txt", "notes.txt", MARKER}
    assert set(content(used.path)) == {*left, "checkpoints/llama-pretrained/weights.bin"}
    clear_run(used)
    assert "plan.safetensors" not in content(used.path)
    assert "notes.txt" in content(used.path)


@pytest.mark.parametrize("name", ["adapter/notes.txt", "merged/my.py", "evaluation/my_eval.py", "adapter/mine/x.bin"])
def test_files_of_the_user_inside_what_would_be_replaced_are_named(used, name):
    (used.path / name).parent.mkdir(exist_ok=True)
    (used.path / name).write_text("mine")
    with pytest.raises(InputError, match=r"gora did not write this.*Move it elsewhere"):
        refuse_foreign_files(used)


def test_a_folder_where_none_can_be_is_refused_before_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    below, closed = tmp_path / "rows.jsonl" / "run", tmp_path / "closed" / "run"
    closed.parent.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed.parent)
    for folder, message in ((below, r"rows\.jsonl is a file"), (closed, "closed may not be written to")):
        with pytest.raises(InputError, match=f"{message}.*--set output=FOLDER"):
            refuse_what_cannot_be_taken(folder)
        with pytest.raises(InputError, match=message), owning(folder, command="gora train"):
            pass
    assert not list(closed.parent.iterdir())


def test_a_file_system_that_takes_no_folders_is_told(tmp_path):
    folder = Path("/proc/gora-test-run")
    with pytest.raises(InputError, match=r"cannot be made.*--set output=FOLDER"), owning(folder, command="gora train"):
        pass
