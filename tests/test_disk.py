"""A disk that is full, or gets full: one line with path, needed and free bytes, and what was there before stays.

Two real injections: a small file system in memory, which only root may mount, and the limit on the size of a file,
which no look at the free space can foresee.
"""

import json
import re
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

import gora.disk as disk
import gora.files as files
from gora.errors import GoraError, InputError
from gora.files import append_line, publish, write_json
from gora.gradients.storage import write_shards
from gora.runs.folder import RunFolder
from gora.stages.run import run
from gora.training.trainer import GoraTrainer
from tests.conftest import ROOT
from tests.helpers.environment import clean_environment
from tests.helpers.hashes import run_hash
from tests.runs.test_context import SMALL, recipe

TOLD = re.compile(r"needs (at least )?[\d.]+ (bytes|[kMG]B), and [\d.]+ (bytes|[kMG]B) are free\.")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts file systems of so many kB, and resizes them; skipped for a user who may not."""
    mounted = []

    def of(size, folder=tmp_path / "small"):
        options = f"{'remount,' if folder in mounted else ''}size={size}k"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        return folder

    yield of
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def files_of_at_most(size):
    """No file of this process may grow beyond that; Python ignores the signal, and writing fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def with_torch(path):
    with publish(path) as aside:
        torch.save({"state": torch.zeros(100_000)}, aside)


def with_safetensors(path):
    with publish(path) as aside:
        save_file({"a": torch.zeros(100_000)}, aside)


def with_torch_in_a_folder(path):
    with publish(path) as aside:
        aside.mkdir()
        write_json(aside / "small.json", {})
        torch.save({"state": torch.zeros(100_000)}, aside / "optimizer.pt")


def json_in_a_folder(path):
    with publish(path) as aside:
        aside.mkdir()
        write_json(aside / "large.json", ["x" * 400_000])


WRITERS = {
    "torch": with_torch,
    "safetensors": with_safetensors,
    "folder": with_torch_in_a_folder,
    "json in a folder": json_in_a_folder,
    "json": lambda path: write_json(path, ["x" * 400_000]),
    "shards": lambda path: write_shards(path, [("a", torch.zeros(100_000))], {}),
    "a line": lambda path: append_line(path, "x" * 400_000),
}


@pytest.fixture(params=["file system", "file size"])
def room_for_100_kb(request, tmp_path):
    """A folder in which nothing larger can be written, and what holds while it is tried."""
    if request.param == "file system":
        yield request.getfixturevalue("small_disk")(100)
    else:
        with files_of_at_most(100_000):
            yield tmp_path


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_gets_full_is_one_line_with_path_needed_and_free_bytes(monkeypatch, room_for_100_kb, writer):
    # Somebody else takes the room that was there when it was looked at.
    for module in (files, sys.modules["gora.gradients.storage"]):
        monkeypatch.setattr(module, "require_room", lambda path, needed: None)
    path = room_for_100_kb / "made"
    with pytest.raises(GoraError) as full:
        WRITERS[writer](path)
    told = str(full.value)
    assert (full.value.code, full.value.exit_code, len(told.splitlines())) == ("disk-full", 1, 1)
    assert told.startswith(f"{path} cannot be written: ")
    assert TOLD.search(told), told
    assert [left.name for left in room_for_100_kb.iterdir() if left.name != "made"] == []
    assert writer == "a line" or not path.exists()


@pytest.mark.parametrize(
    "writer", [name for name in WRITERS if name not in ("torch", "safetensors", "folder", "a line")]
)
def test_what_has_no_room_is_refused_before_it_is_written(small_disk, writer):
    path = small_disk(100) / "made"
    with pytest.raises(GoraError, match=r"^There is no room for .*made.* It needs 400 kB, and 1\d\d kB are free"):
        WRITERS[writer](path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(122, "Disk quota exceeded", "a"), "Disk quota exceeded"),
        (OSError(27, "File too large"), "File too large"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "it broke off"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "it broke off"),
        (ValueError("I/O: No space left on device"), "No space left on device"),
        (ValueError("An error occurred: [Errno 28] Error writing bytes to file"), "No space left on device"),
    ],
)
def test_libraries_have_errors_of_their_own_for_a_full_disk(tmp_path, error, reason):
    with pytest.raises(GoraError, match=reason), publish(tmp_path / "made") as aside:
        aside.write_text("half")
        raise error
    assert disk.is_full(error)


@pytest.mark.parametrize("error", [OSError(2, "No such file"), RuntimeError("size mismatch"), InputError("no")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, publish(tmp_path / "made"):
        raise error
    assert raised.value is error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run of three steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(recipe(folder, "train.max_steps=3"))
    return folder


def wait_for_second_checkpoint(monkeypatch, then):
    """Call `then` just before the second checkpoint is saved."""
    save = GoraTrainer._save_checkpoint

    def saving(self, *arguments):
        if self.state.global_step == 2:
            then()
        return save(self, *arguments)

    monkeypatch.setattr(GoraTrainer, "_save_checkpoint", saving)


@pytest.mark.parametrize("how", ["file system", "file size"])
def test_a_checkpoint_without_room_ends_the_run_and_the_one_before_it_is_resumed(
    gora_here, whole, tmp_path, monkeypatch, request, how
):
    settings = [part for setting in (*SMALL, "train.max_steps=3", "output=run") for part in ("--set", setting)]
    place, limits = tmp_path, resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if how == "file system":
            small_disk = request.getfixturevalue("small_disk")
            place = small_disk(20_000)
            wait_for_second_checkpoint(patch, lambda: small_disk(2_300))
        else:
            # The optimizer's state is twice as large as any file before it.
            wait_for_second_checkpoint(patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1])))
        code, _, err = gora_here("run", "quickstart", *settings, cwd=place)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = RunFolder(place / "run")
    assert (code, len(err.splitlines())) == (1, 1), err
    assert "checkpoint-2" in err
    assert TOLD.search(err), err
    assert json.loads(folder.failure.read_text())["code"] == "disk-full"
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-1"]
    if how == "file system":
        small_disk(20_000)
    code, out, err = gora_here("run", "quickstart", *settings, "--resume", cwd=place)
    assert (code, "checkpoint-1" in out) == (0, True), err
    assert run_hash(folder.path) == run_hash(whole)


def test_training_whose_result_has_no_room_ends_before_its_first_step(gora_here, small_disk):
    place = small_disk(900)
    settings = [part for setting in (*SMALL, "output=run") for part in ("--set", setting)]
    code, out, err = gora_here("run", "quickstart", *settings, cwd=place)
    assert (code, err.startswith("gora: There is no room for run/checkpoints. "), len(err.splitlines())) == (1, True, 1)
    assert TOLD.search(err)
    assert "of them warm-up" not in out
    assert (place / "run" / "plan.safetensors").exists()


def test_room_for_the_last_checkpoints_and_the_merged_model_is_looked_at_beforehand(small_disk, capsys):
    place = small_disk(2_600)
    with pytest.raises(GoraError, match=r"^There is no room for .*adapter\. It needs 33\d kB, and \d+ kB are free"):
        run(recipe(place / "run"), merge_too=True)
    told = capsys.readouterr().out
    assert re.search(r"warning: 2\.\d MB are free in .*, and 2 checkpoints and the result take 2\.\d MB", told), told
    assert re.search(r"warning: 2\.\d MB are free in .*, and the merged model takes about 21.\d MB", told)
    assert not list((place / "run").glob(".writing-*"))


def test_a_merged_model_without_room_is_refused_and_the_adapter_stays(small_disk):
    place = small_disk(5_000)
    with pytest.raises(GoraError, match=r"^There is no room for .*merged\. It needs 21\.\d MB, and 1\.\d MB are free"):
        run(recipe(place / "run"), merge_too=True)
    assert (place / "run" / "adapter").exists()


def test_what_was_trained_has_no_room_and_training_resumes_from_its_checkpoint(whole, tmp_path, monkeypatch):
    settings = recipe(tmp_path / "run", "train.max_steps=3")
    with monkeypatch.context() as patch:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        monkeypatch.setattr(
            "gora.training.saving.adapter_values",
            lambda model, real=sys.modules["gora.training.saving"].adapter_values: (
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1])),
                real(model),
            )[1],
        )
        with pytest.raises(GoraError, match=r"adapter cannot be written: File too large\. A file may have 200 kB here"):
            run(settings)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        patch.undo()
    monkeypatch.undo()
    assert not (tmp_path / "run" / "adapter").exists()
    run(settings, mode="resume")
    assert run_hash(tmp_path / "run") == run_hash(whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_two_processes_tell_once_of_a_full_disk_and_the_checkpoint_before_it_is_resumed(tmp_path, engine):
    settings = [*SMALL, f"distributed={engine}", "adapter.method=lora", "data.eval=null", "output=run"]
    options = [part for setting in settings for part in ("--set", setting)]
    environment = clean_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu")

    def start(*program):
        line = [sys.executable, *program, "train", "quickstart", *options]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    full = start(str(ROOT / "tests" / "helpers" / "full_disk.py"))
    told = [line for line in full.stderr.splitlines() if line.startswith("gora: ")]
    assert (full.returncode, len(told), "Traceback" in full.stderr) == (1, 1, False), full.stderr
    assert "checkpoint-2 cannot be written: " in told[0]
    assert TOLD.search(told[0]), told
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-1"]
    options += ["--resume", "--processes", "2"]
    done = start("-m", "gora")
    assert done.returncode == 0, done.stderr
    assert "checkpoint-1" in done.stdout
