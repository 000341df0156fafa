"""Every file of every artefact, lost, cut or changed by one bit: whoever reads it says so and does not go on."""

import shutil

import pytest
import torch

from gora import manifest
from gora.adapters.load import find_adapter
from gora.errors import InputError
from gora.evaluation.models.locate import find_subject
from gora.gradients.archive import ArchivedStatistics
from gora.gradients.checkpoint import PassCheckpoint
from gora.gradients.collect import Progress
from gora.gradients.sums import DeviceSums
from gora.plan import read_plan
from gora.runs.folder import RunFolder
from gora.runs.state import RunState, find_progress
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train
from tests.helpers.hashes import run_hash
from tests.runs.test_context import recipe
from tests.runs.test_state import DAMAGES, damage


def pass_checkpoint(folder):
    return PassCheckpoint(folder, {"seed": 1}, stop=lambda: None, interrupt=lambda number, cursor: None)


def restore(folder):
    pass_checkpoint(folder).restore(DeviceSums({"a": (3, 4)}, torch.device("cpu")))


READERS = {
    "adapter": find_adapter,
    "merged": lambda folder: find_subject(str(folder)),
    "gradients": ArchivedStatistics,
    "gradients.checkpoint": restore,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with everything that a run can leave."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    precompute(recipe(folder.path), keep="fp32")
    run(recipe(folder.path, "train.max_steps=3"), mode="resume")
    merge(folder.adapter, folder.merged)
    sums = DeviceSums({"a": (3, 4)}, torch.device("cpu"))
    pass_checkpoint(folder.pass_checkpoint).save(sums, Progress())
    return folder


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("artefact", READERS)
def test_whoever_reads_a_damaged_folder_names_the_file_and_ends(whole, tmp_path, artefact, how):
    source = whole.path / artefact
    names = sorted(manifest.listed(source) - {manifest.NAME})
    assert len(names) >= 2
    READERS[artefact](shutil.copytree(source, tmp_path / "whole"))
    for number, name in enumerate(names):
        copy = shutil.copytree(source, tmp_path / f"{number}")
        damage(copy / name, how)
        with pytest.raises(InputError, match="is damaged: ") as refused:
            READERS[artefact](copy)
        assert name in str(refused.value)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_plan_is_refused_wherever_it_was_changed(whole, tmp_path, how):
    content = whole.plan.read_bytes()
    places = range(3, len(content), len(content) // 40) if how == "flipped" else [0]
    for place in places:
        copy = tmp_path / "plan.safetensors"
        copy.write_bytes(content)
        if how == "flipped":
            copy.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        else:
            damage(copy, how)
        with pytest.raises(InputError, match=r"plan.safetensors"):
            read_plan(copy)


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors"])
def test_training_resumes_from_the_checkpoint_before_a_damaged_one_to_the_same_bits(whole, tmp_path, capsys, name):
    again = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(again.adapter)
    shutil.rmtree(again.merged)
    damage(again.all_checkpoints()[-1] / name, "flipped")
    train(recipe(again.path, "train.max_steps=3"), mode="resume")
    assert run_hash(again.path) == run_hash(whole.path)
    told = capsys.readouterr().out
    assert f"{again.all_checkpoints()[-1]} is damaged: {name} was changed" in told.replace("\n", " ")


def test_without_a_whole_checkpoint_nothing_is_resumed(whole, tmp_path):
    again = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(again.adapter)
    for checkpoint in again.all_checkpoints():
        (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(InputError, match=r"no checkpoint that can be resumed.*--overwrite") as refused:
        run(recipe(again.path, "train.max_steps=3"), mode="resume")
    assert all("rng_state.pth is missing" in problem for problem in refused.value.problems)


def test_a_run_whose_adapter_was_damaged_is_not_finished_and_makes_it_again(whole, tmp_path):
    again = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    damage(again.adapter / "adapter_model.safetensors", "empty")
    assert find_progress(again).state == RunState.TRAINING
    run(recipe(again.path, "train.max_steps=3"), mode="resume")
    assert find_progress(again).state == RunState.FINISHED
    assert run_hash(again.path) == run_hash(whole.path)
