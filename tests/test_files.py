"""Files and folders appear whole or not at all."""

import json
import os
import signal
import subprocess
import sys

import pytest

import gora.files as files
from gora.errors import GoraError, InputError
from gora.files import append_line, delete, publish, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    with publish(tmp_path / "a.txt") as aside:
        aside.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_what_was_there(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), publish(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with publish(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / content).write_text(content)
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), publish(tmp_path / "a.txt"):
        pass


def test_json_that_json_cannot_say_is_refused_and_nothing_appears(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_appended_lines_are_whole(tmp_path):
    for number in range(3):
        append_line(tmp_path / "m.jsonl", json.dumps({"step": number}))
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1, 2]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from gora.files import publish
with publish(Path(sys.argv[1])) as aside:
    aside.mkdir()
    (aside / "weights").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
import gora.files as files
real = os.replace
def replace(source, target):
    if str(target) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
files.os.replace = replace
with files.publish(Path(sys.argv[1])) as aside:
    aside.mkdir()
    (aside / "new").write_text("new")
"""


def killed(script, path):
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_process_leaves_nothing_under_the_final_name_and_the_next_one_sweeps(tmp_path):
    killed(KILLED_WHILE_WRITING, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    assert len(names(tmp_path)) == 1
    write_text(tmp_path / "other.txt", "x")
    assert names(tmp_path) == ["other.txt"]


def test_a_folder_that_a_killed_process_moved_aside_comes_back(tmp_path):
    with publish(tmp_path / "adapter") as aside:
        aside.mkdir()
        (aside / "old").write_text("old")
    killed(KILLED_BETWEEN_RENAMES, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    write_text(tmp_path / "other.txt", "x")
    assert names(tmp_path / "adapter") == ["old"]
    assert names(tmp_path) == ["adapter", "other.txt"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with publish(tmp_path / "first") as first:
        first.write_text("first")
        write_text(tmp_path / "second", "second")
        assert first.exists()
    assert names(tmp_path) == ["first", "second"]


def test_files_beside_are_never_touched(tmp_path):
    (tmp_path / f".writing-new-x-elsewhere-{os.getpid()}").write_text("of another machine")
    write_text(tmp_path / "a.txt", "a")
    assert len(names(tmp_path)) == 2


def write(aside, kind):
    if kind == "folder":
        aside.mkdir()
        aside = aside / "inside"
    aside.write_text("new")


@pytest.mark.parametrize(("there", "written"), [("folder", "file"), ("file", "folder")])
def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path, there, written):
    write(tmp_path / "model", there)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"model is a {there}"), publish(tmp_path / "model") as aside:
        write(aside, written)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_below_a_file_is_refused(tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="there is not a folder"):
        write_text(tmp_path / "there" / "inside" / "new.yaml", "x")
    assert (tmp_path / "there").read_text() == "mine"


@pytest.mark.parametrize("written", ["file", "folder"])
def test_a_link_to_a_folder_is_not_replaced(tmp_path, written):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(InputError, match="is a link"), publish(tmp_path / "link") as aside:
        write(aside, written)
    assert names(tmp_path) == ["link", "real"]


def test_nothing_written_over_a_folder_is_an_error_and_leaves_it(tmp_path):
    write(tmp_path / "model", "folder")
    with pytest.raises(FileNotFoundError), publish(tmp_path / "model"):
        pass
    assert names(tmp_path / "model") == ["inside"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Exception("I/O: No space left on device")])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_is_told_with_the_path_and_nothing_stays(tmp_path, error, kind):
    with (
        pytest.raises(GoraError, match=r"model cannot be written: No space left on device\. It needs at least") as told,
        publish(tmp_path / "model") as aside,
    ):
        write(aside, kind)
        raise error
    assert told.value.__cause__ is error
    assert names(tmp_path) == []


def test_an_error_is_not_hidden_by_a_leftover_that_cannot_be_deleted(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError("unlink")

    monkeypatch.setattr(files.Path, "unlink", fail)
    with pytest.raises(ValueError, match="first"), publish(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise ValueError("first")


def test_an_appended_line_is_written_to_its_end_when_the_system_takes_it_in_pieces(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, content: whole(descriptor, content[:7]))
    for line in ("a line that is longer than one piece, with ü", "", "next"):
        append_line(tmp_path / "m.jsonl", line)
    assert (tmp_path / "m.jsonl").read_text().split("\n") == [
        "a line that is longer than one piece, with ü",
        "",
        "next",
        "",
    ]


def dead_process():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize("role", ["new", "old"])
@pytest.mark.parametrize("ending", [".stage", ".tmp-1"])
def test_leftovers_with_an_ending_of_their_writer_are_swept(tmp_path, role, ending):
    (tmp_path / f".writing-{role}-model-1-{files._host()}-{dead_process()}{ending}").mkdir()
    write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == ["a.txt"]


def test_names_that_only_look_like_leftovers_stay(tmp_path):
    dead, host = dead_process(), files._host()
    mine = [
        f".writing-new-model-{host}-{os.getpid()}.stage",
        f".writing-new-model-{host}-x{dead}",
        f".writing-new-model-{host}-{dead}x",
        f".writing-new-model-{host}-{'9' * 30}",
        f".writing-draft-model-{host}-{dead}",
        f".writing-notes-{dead}",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == sorted([*mine, "a.txt"])


def test_what_a_dead_process_of_the_same_id_left_is_not_mixed_in(tmp_path):
    # As after the restart of a container, whose processes get the same ids again.
    left = files._beside(tmp_path / "model", "new")
    left.mkdir()
    (left / "half").write_text("half")
    with publish(tmp_path / "model") as aside:
        write(aside, "folder")
    assert names(tmp_path / "model") == ["inside"]


def test_what_another_process_deletes_at_the_same_time_is_gone(tmp_path, monkeypatch):
    rows = tmp_path / "rows"
    rows.mkdir()
    sweep = files.sweep
    monkeypatch.setattr(files, "sweep", lambda folder: (sweep(folder), rows.rmdir()))
    delete(rows)
    assert list(tmp_path.iterdir()) == []
