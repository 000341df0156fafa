"""A checkpoint that somebody else has made, manifest included: it is refused, and nothing in it runs."""

import json
import pickle
import shutil

import pytest
import torch

from gora import manifest
from gora.errors import InputError
from gora.runs.folder import RunFolder
from gora.stages.run import run
from gora.stages.train import train
from gora.training.saved_state import check_state
from tests.runs.test_context import recipe


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has two of three steps behind it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(recipe(folder))
    shutil.rmtree(folder / "adapter")
    return folder


@pytest.fixture
def forged(begun, tmp_path):
    """A copy whose first checkpoint is the only one, and is sealed again after a file was replaced."""

    def forge(name, content):
        folder = RunFolder(shutil.copytree(begun, tmp_path / "run"))
        newest = folder.all_checkpoints()[-1]
        shutil.rmtree(newest)
        (checkpoint := folder.all_checkpoints()[-1]).joinpath(name).write_bytes(content)
        manifest.seal(checkpoint)
        return folder, checkpoint

    return forge


class Canary:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("optimizer.pt", "torch"),
        ("scheduler.pt", "pickle"),
        ("rng_state.pth", "pickle"),
        ("optimizer.pt", "other"),
        ("rng_state.pth", "junk"),
    ],
)
def test_a_forged_file_is_refused_and_runs_nothing(forged, tmp_path, name, how):
    canary = tmp_path / "sung"
    if how == "torch":
        torch.save({"state": Canary(canary)}, tmp_path / "made")
        content = (tmp_path / "made").read_bytes()
    elif how == "other":
        torch.save(["nothing", "of", "the", "kind"], tmp_path / "made")
        content = (tmp_path / "made").read_bytes()
    else:
        content = pickle.dumps(Canary(canary)) if how == "pickle" else b"\x80junk\0"
    folder, checkpoint = forged(name, content)
    with pytest.raises(InputError, match="cannot be loaded") as refused:
        train(recipe(folder.path), mode="resume")
    assert str(checkpoint) in str(refused.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {**state, "global_step": 7},
        lambda state: {**state, "global_step": "1"},
        lambda state: {**state, "log_history": {}},
        lambda state: {**state, "stateful_callbacks": []},
        lambda state: {**state, "num_input_tokens_seen": "many"},
        lambda state: {**state, "unknown": 1},
    ],
)
def test_a_state_that_is_not_the_trainers_is_refused(begun, tmp_path, change):
    source = RunFolder(begun).all_checkpoints()[0]
    check_state(source)
    checkpoint = tmp_path / source.name
    checkpoint.mkdir()
    content = json.loads((source / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps(change(content)))
    with pytest.raises(InputError, match=r"trainer_state.json cannot be used"):
        check_state(checkpoint)


def test_training_does_not_begin_with_such_a_state(forged):
    folder, checkpoint = forged("trainer_state.json", b"{}")
    with pytest.raises(InputError, match=f"{checkpoint.name}/trainer_state.json cannot be used: global_step: 0"):
        train(recipe(folder.path), mode="resume")
