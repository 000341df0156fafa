"""`train.learning_rate: auto`: what is tried leaves no trace but the rate."""

import json
import os
import signal
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gora.core.learning_rate import rising_rates
from gora.errors import GoraError, InputError, Interrupted
from gora.probing import rate as module
from gora.probing.range_test import RangeTest, range_test
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.stages.train import train
from gora.training.start import wrap_model
from tests.helpers.callbacks import call_too

SMALL = (
    "data.train.max_rows=24",
    "data.eval=null",
    "data.max_length=224",
    "adapter.method=lora",
    "adapter.dropout=0.1",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.log_steps=1",
    "evaluation.steps=null",
)


def recipe_in(folder, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={folder}"]).recipe


class StopAfterTwo(TrainerCallback):
    """A signal in the second step."""

    def on_step_end(self, args, state, control, **named):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def adapter(folder):
    return load_file(RunFolder(folder).adapter / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run whose rate was found, and what it wrote about it."""
    folder = tmp_path_factory.mktemp("rate") / "run"
    train(recipe_in(folder, "train.learning_rate=auto", "train.save_steps=2", "train.keep_checkpoints=9"))
    return folder, json.loads(RunFolder(folder).decisions.read_text())["train.learning_rate"]


def test_the_run_is_that_of_the_rate_that_was_found(found, tmp_path):
    folder, decision = found
    train(recipe_in(tmp_path / "given", f"train.learning_rate={decision['value']}"))
    assert same(adapter(folder), adapter(tmp_path / "given"))


def test_the_rate_lies_below_the_one_at_which_the_loss_rises(found):
    folder, decision = found
    rates, losses = zip(*decision["curve"], strict=True)
    assert decision["from"] == "measured"
    assert 1e-4 < decision["value"] < rates[-1] / 5
    assert losses[-1] > losses[0] > min(losses)
    written = load_recipe(str(RunFolder(folder).recipe), []).recipe
    assert written.train.learning_rate == decision["value"]


def test_a_run_that_is_resumed_goes_on_with_its_rate_and_tries_nothing(found, tmp_path, monkeypatch):
    folder, _ = found
    recipe = recipe_in(tmp_path / "again", "train.learning_rate=auto", "train.save_steps=2", "train.keep_checkpoints=9")
    with monkeypatch.context() as patched:
        call_too(patched, StopAfterTwo())
        with pytest.raises(Interrupted):
            train(recipe)
    monkeypatch.setattr(module, "range_test", lambda *_: pytest.fail("tried again"))
    train(recipe, mode="resume")
    assert same(adapter(folder), adapter(tmp_path / "again"))


def test_a_damaged_decision_is_refused_by_name(found, tmp_path):
    folder = tmp_path / "run"
    copytree(found[0], folder)
    RunFolder(folder).decisions.write_text("[1]")
    for path in (RunFolder(folder).results, *RunFolder(folder).adapter.iterdir()):
        path.unlink()
    RunFolder(folder).adapter.rmdir()
    with pytest.raises(InputError, match=r"decisions\.json is damaged"):
        train(recipe_in(folder, "train.learning_rate=auto", "train.save_steps=2"), mode="resume")


def test_a_loss_that_never_rises_ends_the_command(tmp_path, monkeypatch):
    level = RangeTest(rates=rising_rates(1e-5, 1.0, 45), losses=[2.0] * 45, before=[2.0] * 45)
    monkeypatch.setattr(module, "range_test", lambda *_: level)
    with pytest.raises(GoraError, match="the loss rose at no rate"):
        train(recipe_in(tmp_path / "run", "train.learning_rate=auto"))


@pytest.mark.parametrize("method", ["full", "lora-pro", "dora", "adalora"])
def test_any_method_is_tried_and_left_as_it_was(tmp_path, method, monkeypatch):
    monkeypatch.setattr("gora.probing.range_test.STEPS", 7)
    settings = ("adapter.method=lora", "adapter.dora=true") if method == "dora" else (f"adapter.method={method}",)
    recipe = recipe_in(tmp_path / "run", "train.learning_rate=auto", "adapter.dropout=0", *settings)
    with RunContext.open(recipe, command="a test") as context:
        start = wrap_model(context, None, steps=6, resumed=False)
        before = {name: value.detach().clone() for name, value in start.model.named_parameters()}
        state = torch.random.get_rng_state()
        found = range_test(context, start.model, 1.0)
        assert len(found.rates) == len(found.losses) == len(found.before) > 1
        assert found.losses[0] == found.before[0]
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in start.model.named_parameters())
        assert all(value.grad is None for value in start.model.parameters())
