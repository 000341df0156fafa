"""A base model that changes between two stages: each refuses it and names what differs."""

import shutil
import signal

import pytest

import gora.training.finish as finish
from gora.errors import InputError, Interrupted
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.gradients.checkpoint import PassCheckpoint
from gora.recipe import load_recipe
from gora.runs.folder import RunFolder
from gora.runs.results import has_losses
from gora.runtime.interrupt import StopSignal
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train
from tests.conftest import TINY
from tests.helpers.weights import one_bit_changed, rewrite_note

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"
TARGET = "model.layers.2.mlp.up_proj.weight"


def recipe(output, base, *more):
    settings = (
        "data.train.max_rows=8",
        "data.eval.max_rows=4",
        "data.max_length=96",
        "gora.steps=2",
        "train.batch_size=4",
        "train.micro_batch_size=4",
        "train.max_steps=2",
        "train.save_steps=1",
        "evaluation.steps=null",
    )
    return load_recipe("quickstart", [*settings, f"model.name={base}", f"output={output}", *more]).recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return shutil.copytree(TINY, tmp_path_factory.mktemp("models") / "base", copy_function=shutil.copyfile)


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """A run that was stopped in its last evaluation: plan, checkpoints and adapter are there, and no results."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(*_):
        raise StopSignal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "final_loss", stop)
        with pytest.raises(StopSignal):
            run(recipe(folder, base))
    return folder


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(stopped, tmp_path / "run"))


def refuses(message, name, work):
    with pytest.raises(InputError, match=message) as refused:
        work()
    assert f"tensors differ: {name}" in "\n".join(refused.value.problems)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", [EMBEDDING, NORM, TARGET])
def test_training_refuses_the_plan_of_another_base(base, again, name):
    with one_bit_changed(base / "model.safetensors", name):
        refuses("does not belong to this model", name, lambda: train(recipe(again.path, base), mode="overwrite"))
    assert again.adapter.exists()


def test_a_checkpoint_of_another_base_is_not_resumed(base, again):
    shutil.rmtree(again.adapter)
    with one_bit_changed(base / "model.safetensors", NORM):
        refuses("not those that .*checkpoint-2 was", NORM, lambda: train(recipe(again.path, base), mode="resume"))
    assert train(recipe(again.path, base), mode="resume").adapter.exists()


def test_a_trained_run_is_not_finished_on_another_base(base, again):
    with one_bit_changed(base / "model.safetensors", EMBEDDING):
        refuses("not the base that the adapter", EMBEDDING, lambda: train(recipe(again.path, base), mode="resume"))
    assert not has_losses(again)
    assert "final" in train(recipe(again.path, base), mode="resume").losses


@pytest.mark.parametrize("part", ["", "adapter"], ids=["run", "adapter"])
def test_another_base_is_not_evaluated(base, stopped, part):
    with one_bit_changed(base / "model.safetensors", NORM):
        refuses("not the base that the adapter", NORM, lambda: load_subject(find_subject(str(stopped / part))))
    load_subject(find_subject(str(stopped / part)))


def test_another_base_is_not_merged_whether_it_was_quantised_in_training_or_not(base, again, tmp_path):
    for quantization in (None, "nf4"):
        rewrite_note(again.adapter, lambda note, value=quantization: note.update(base_quantization=value))
        with one_bit_changed(base / "model.safetensors", NORM):
            refuses("Give that one with --base", NORM, lambda: merge(again.adapter, tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_an_interrupted_gradient_pass_is_not_resumed_on_another_base(base, tmp_path, monkeypatch):
    settings = recipe(tmp_path / "run", base)
    monkeypatch.setattr(PassCheckpoint, "due", lambda self: True)

    def interrupt(self, sums, progress):
        save(self, sums, progress)
        raise Interrupted(2, "saved")

    save = PassCheckpoint.save
    monkeypatch.setattr(PassCheckpoint, "save", interrupt)
    with pytest.raises(Interrupted):
        precompute(settings)
    monkeypatch.undo()
    refusal = pytest.raises(InputError, match="holds the gradients of another run")
    with one_bit_changed(base / "model.safetensors", EMBEDDING), refusal as refused:
        precompute(settings, mode="resume")
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["weights"]
    assert precompute(settings, mode="resume").plan.adapted
