"""How far a run has come, what proves it, and what each command does in each state of a folder."""

import itertools
import json
from pathlib import Path

import pytest

from gora import manifest
from gora.errors import InputError
from gora.files import write_json
from gora.runs.folder import RunFolder
from gora.runs.state import PROOF, RunState, find_progress, settle

STATES = list(RunState)
# What `new`, `resume` and `overwrite` do in each state, from EMPTY to FINISHED: they go on (+) or are refused (-).
TABLE = {
    ("precompute", True): {"new": "+-----", "resume": "++----", "overwrite": "++++++"},
    ("train", True): {"new": "+++---", "resume": "+++++-", "overwrite": "++++++"},
    ("train", False): {"new": "+-----", "resume": "+++++-", "overwrite": "++++++"},
    ("run", True): {"new": "+-----", "resume": "++++++", "overwrite": "++++++"},
    ("run", False): {"new": "+-----", "resume": "++++++", "overwrite": "++++++"},
}
CASES = [
    (verb, needs_plan, mode, state, TABLE[verb, needs_plan][mode][state] == "+")
    for (verb, needs_plan), mode, state in itertools.product(TABLE, ("new", "resume", "overwrite"), STATES)
]


def sealed(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"the content of {name}")
    manifest.seal(folder)


def folder_in(state: RunState, path: Path) -> RunFolder:
    """A run folder with the files that prove a state, and those of the states before it."""
    folder = RunFolder(path)
    path.mkdir()
    if state == RunState.COLLECTING:
        sealed(folder.pass_checkpoint, "state.json")
    if state >= RunState.PLANNED:
        folder.plan.write_text("a plan")
    if state >= RunState.TRAINING:
        for step in (3, 6):
            sealed(folder.checkpoints / f"checkpoint-{step}", "optimizer.pt", "adapter_model.safetensors")
    if state >= RunState.TRAINED:
        sealed(folder.adapter, "adapter_model.safetensors", "adapter_config.json")
        write_json(folder.pending_results, {})
    if state == RunState.FINISHED:
        write_json(folder.results, {"loss": {"final": 1.0}})
    return folder


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_each_state_is_found_by_the_file_that_proves_it(tmp_path, state):
    progress = find_progress(folder_in(state, tmp_path / "run"))
    assert (progress.state, progress.damage) == (state, ())
    assert (progress.checkpoint is not None) == (state == RunState.TRAINING)
    assert (progress.trained is not None) == (state >= RunState.TRAINED)


@pytest.mark.parametrize(("verb", "needs_plan", "mode", "state", "goes_on"), CASES)
def test_every_command_goes_on_or_is_refused_with_what_to_do(tmp_path, verb, needs_plan, mode, state, goes_on):
    folder = folder_in(state, tmp_path / "run")
    progress = find_progress(folder)
    if goes_on:
        settle(folder, progress, verb, mode, needs_plan=needs_plan)
        return
    with pytest.raises(InputError) as refused:
        settle(folder, progress, verb, mode, needs_plan=needs_plan)
    assert "--overwrite" in str(refused.value)
    # Nothing is offered that would be refused in its turn.
    assert ("--resume" in str(refused.value)) == (mode == "new" and TABLE[verb, needs_plan]["resume"][state] == "+")
    assert str(folder.path) in str(refused.value)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        place = len(content) // 3
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])


DAMAGES = ("missing", "empty", "truncated", "flipped")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", manifest.NAME])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path, name, how):
    folder = folder_in(RunState.TRAINING, tmp_path / "run")
    newest, before = folder.checkpoints / "checkpoint-6", folder.checkpoints / "checkpoint-3"
    damage(newest / name, how)
    progress = find_progress(folder)
    assert (progress.state, progress.checkpoint) == (RunState.TRAINING, before)
    (line,) = progress.damage
    assert str(newest) in line
    assert name in line
    damage(before / name, how)
    progress = find_progress(folder)
    assert (progress.state, progress.checkpoint, len(progress.damage)) == (RunState.TRAINING, None, 2)
    for verb in ("train", "run"):
        with pytest.raises(InputError, match=r"no checkpoint that can be resumed.*--overwrite") as refused:
            settle(folder, progress, verb, "resume", needs_plan=True)
        assert refused.value.problems == progress.damage


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", manifest.NAME])
def test_a_damaged_adapter_is_not_finished_and_training_resumes_from_its_last_checkpoint(tmp_path, name, how):
    folder = folder_in(RunState.FINISHED, tmp_path / "run")
    damage(folder.adapter / name, how)
    progress = find_progress(folder)
    assert (progress.state, progress.checkpoint) == (RunState.TRAINING, folder.checkpoints / "checkpoint-6")
    assert str(folder.adapter) in progress.damage[0]


def test_losses_that_cannot_be_read_do_not_finish_a_run(tmp_path):
    folder = folder_in(RunState.FINISHED, tmp_path / "run")
    for text in ("", "[]", '{"loss": 3}', '{"tasks": {}}', '{"loss": {'):
        folder.results.write_text(text)
        assert find_progress(folder).state == RunState.TRAINED


def test_results_of_an_older_gora_are_still_read(tmp_path):
    folder = folder_in(RunState.TRAINED, tmp_path / "run")
    (folder.path / "evaluation.json").write_text(json.dumps({"loss": {"final": 1.0}}))
    assert find_progress(folder).state == RunState.FINISHED


def test_files_that_were_added_to_a_sealed_folder_are_left_out_of_account(tmp_path):
    sealed(tmp_path / "adapter", "adapter_config.json")
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    assert manifest.damage(tmp_path / "adapter") is None


def test_a_manifest_that_names_files_outside_its_folder_is_refused(tmp_path):
    sealed(tmp_path / "adapter", "adapter_config.json")
    (tmp_path / "secret").write_text("x")
    path = tmp_path / "adapter" / manifest.NAME
    document = json.loads(path.read_text())
    document["files"]["../secret"] = {"size": 1, "sha256": manifest.sha256_of(tmp_path / "secret")}
    content = {key: document[key] for key in ("format_version", "files")}
    write_json(path, {**content, "sha256": manifest._checksum(content)})
    assert manifest.damage(tmp_path / "adapter") == f"{manifest.NAME} was changed after it was written"


def test_the_documented_states_are_those_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    for state in RunState:
        assert f"| {state.name.lower()} | {PROOF[state]} |" in page
