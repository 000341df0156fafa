"""Runs that were stopped after their last step: what is missing is made, and nothing twice."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import gora.stages.run as run_stage
import gora.training.finish as finish
from gora.errors import InputError, Interrupted
from gora.recipe import load_recipe
from gora.runs.folder import RunFolder
from gora.runs.results import has_losses
from gora.runtime.interrupt import StopSignal
from gora.stages.run import run
from gora.stages.train import train
from tests.helpers.callbacks import call_too

# The last of three steps is in the middle of the first epoch.
SETTINGS = (
    "data.train.max_rows=39",
    "data.eval.max_rows=8",
    "data.max_length=160",
    "gora.steps=2",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.max_steps=3",
    "train.log_steps=1",
    "train.save_steps=3",
    "evaluation.steps=null",
)


def recipe(output, *more):
    return load_recipe("quickstart", [*SETTINGS, f"output={output}", *more]).recipe


def stop(*arguments, **named):
    raise StopSignal(signal.SIGINT)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its last evaluation."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "final_loss", stop)
        with pytest.raises(StopSignal):
            run(recipe(folder))
    assert not has_losses(RunFolder(folder))
    return folder


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(stopped, tmp_path / "run"))


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def facts(folder):
    return json.loads((folder / "results.json").read_text())


def steps(folder):
    return [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("saved", [True, False], ids=["the adapter was saved", "it was not"])
def test_a_run_stopped_after_its_last_step_makes_what_is_missing(stopped, again, saved):
    before = (again.plan.stat().st_mtime_ns, steps(stopped))
    if not saved:
        shutil.rmtree(again.adapter)
    result = run(recipe(again.path), mode="resume", merge_too=True)
    assert (again.plan.stat().st_mtime_ns, steps(again.path)) == before
    assert all(torch.equal(value, weights(stopped)[name]) for name, value in weights(again.path).items())
    assert result.losses == facts(again.path)["loss"]
    assert result.losses["final"] < result.losses["initial"] < result.losses["base"]
    assert facts(again.path)["trainable_parameters"] > 0
    assert (again.merged / "config.json").exists()
    assert not again.pending_results.exists()
    text = again.log.read_text()
    assert text.count("evaluation loss") >= 1
    assert "merged model" in text


def test_the_loss_of_a_saved_adapter_is_that_of_an_unbroken_run(stopped, again, tmp_path):
    finished = train(recipe(again.path), mode="resume")
    shutil.copytree(stopped, tmp_path / "other", ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    unbroken = train(recipe(tmp_path / "other"), mode="resume")
    assert finished.losses == pytest.approx(unbroken.losses, rel=1e-5)
    with pytest.raises(InputError, match="adapter is finished: there is nothing to resume"):
        train(recipe(again.path), mode="resume")


def test_a_merge_that_was_stopped_is_made_up_for_and_a_whole_one_left_alone(again, monkeypatch):
    monkeypatch.setattr(run_stage, "merge", stop)
    with pytest.raises(StopSignal):
        run(recipe(again.path), mode="resume", merge_too=True)
    assert has_losses(again)
    monkeypatch.undo()
    run(recipe(again.path), mode="resume", merge_too=True)
    made = (again.merged / "config.json").stat().st_mtime_ns
    result = run(recipe(again.path), mode="resume", merge_too=True)
    assert (again.merged / "config.json").stat().st_mtime_ns == made
    assert result.losses == facts(again.path)["loss"]


@pytest.mark.parametrize("method", ["pissa", "full"])
def test_what_other_methods_leave_is_evaluated_as_well(tmp_path, monkeypatch, method):
    """An adapter of twice the rank, and a whole model."""
    settings = recipe(tmp_path / "run", f"adapter.method={method}", "train.save_steps=null")
    final = []

    def remember(*arguments):
        final.append(evaluate(*arguments))
        stop()

    evaluate = finish.final_loss
    monkeypatch.setattr(finish, "final_loss", remember)
    with pytest.raises(StopSignal):
        train(settings)
    monkeypatch.undo()
    assert train(settings, mode="resume").losses["final"] == pytest.approx(final[0], rel=1e-4)


class SignalInTheLastStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_last_step_saves_the_adapter_and_leaves_the_rest_for_later(tmp_path, monkeypatch):
    settings = recipe(tmp_path / "run", "adapter.method=lora")
    call_too(monkeypatch, SignalInTheLastStep())
    with pytest.raises(Interrupted, match=r"adapter is trained and saved; add --resume") as stopped:
        train(settings)
    assert stopped.value.exit_code == 143
    assert train(settings, mode="resume").losses["final"] > 0


def test_another_recipe_or_other_rows_do_not_finish_a_run(again):
    with pytest.raises(InputError) as refused:
        train(recipe(again.path, "train.learning_rate=1"), mode="resume")
    assert refused.value.problems == ("train.learning_rate: 0.0005 when the run began, 1.0 now",)
    noted = json.loads(again.pending_results.read_text())
    again.pending_results.write_text(json.dumps({**noted, "data": "other"}))
    with pytest.raises(InputError, match="rows are not those"):
        train(recipe(again.path), mode="resume")
    again.pending_results.unlink()
    with pytest.raises(
        InputError, match=r"results.partial, from which the evaluation resumes, is missing.*use .*adapter as it is"
    ):
        train(recipe(again.path), mode="resume")
    again.results.write_text('{"loss": {}}')
    with pytest.raises(InputError, match="other settings"):
        run(recipe(again.path, "train.learning_rate=1"), mode="resume")


def test_a_merge_of_a_whole_model_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="--merge: full fine-tuning leaves a whole model"):
        run(recipe(tmp_path / "run", "adapter.method=full"), merge_too=True)
    assert not (tmp_path / "run").exists()
