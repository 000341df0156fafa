"""Arithmetic comes from the recipe, whatever `accelerate launch --mixed_precision` has put into the environment."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from gora.stages.train import train
from gora.training.trainer import GoraTrainer
from tests.helpers.checkpoints import recipe_for, save_llama, save_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    save_rows(folder / "rows.jsonl")
    return save_llama(folder / "base")


@pytest.fixture(autouse=True)
def without_state():
    """Accelerate keeps what its first caller in a process said."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(base, output):
    return load_file(train(recipe_for(base, base.parent / "rows.jsonl", output)).adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def expected(base):
    AcceleratorState._reset_state(reset_partial_state=True)
    return weights(base, base.parent / "run")


@pytest.mark.parametrize("launched", ["bf16", "fp16", "fp8", "no"])
def test_an_adapter_is_the_same_however_it_was_launched(base, expected, tmp_path, monkeypatch, launched):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    found = weights(base, tmp_path / "run")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_layers_compute_in_float32_where_the_recipe_says_so(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    seen = set()
    real = GoraTrainer.compute_loss

    def watched(self, model, inputs, *more, **named):
        hooks = [
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
            for module in model.modules()
            if isinstance(module, nn.Linear)
        ]
        loss = real(self, model, inputs, *more, **named)
        for hook in hooks:
            hook.remove()
        return loss

    monkeypatch.setattr(GoraTrainer, "compute_loss", watched)
    weights(base, tmp_path / "run")
    assert seen == {torch.float32}


def test_the_environment_is_left_as_it_was(base, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    weights(base, tmp_path / "run")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
