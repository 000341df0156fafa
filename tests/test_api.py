"""What Python programs are offered: the same plan as the command makes, and PEFT models that hold it."""

import importlib
import runpy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model

import gora
from gora.plan import read_factors, read_plan
from gora.planning.micro_batches import MicroBatches
from gora.runs.base_model import load_base_model
from tests.conftest import ROOT, opened
from tests.gradients.test_gradients import text_batches

SMALL = {"gora.steps": 3, "train.micro_batch_size": 2, "train.batch_size": 2, "data.holdout": 4, "data.eval": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan of the command's own stage, and gradients from the same rows."""
    recipe = gora.load_recipe("quickstart", {**SMALL, "output": str(tmp_path_factory.mktemp("api") / "run")})
    path = gora.precompute(recipe).path
    context = opened(recipe)
    model = load_base_model(context)
    batches = MicroBatches(context, model)
    gradients = gora.mean_gradients(
        model, recipe.adapter.targets, [batches[index] for index in range(batches.steps)], context.loss_of(model)
    )
    plan = read_plan(path)
    return recipe, plan, read_factors(path, plan), model, gradients


def test_a_plan_for_ones_own_loop_is_the_plan_of_the_command_bit_for_bit(made):
    recipe, plan, factors, model, gradients = made
    config, values = gora.plan_adapter(
        gradients, rank=recipe.adapter.rank, alpha=recipe.adapter.alpha, gamma=recipe.gora.gamma, seed=recipe.seed
    )
    assert gradients.counted == 3 and sorted(gradients.losses) == [0, 1, 2] and not gradients.left_out
    assert values.keys() == factors.keys()
    for name, pair in factors.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(values[name], pair, strict=True))
    wrapped = get_peft_model(model, config)
    gora.set_initial_values(wrapped, values)
    ranks = {module.name: module.rank for module in plan.adapted}
    for name, rank in ranks.items():
        layer = wrapped.base_model.model.get_submodule(name)
        assert layer.r["default"] == rank
        step = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        expected = recipe.adapter.alpha / rank**0.5 * factors[name][1] @ factors[name][0]
        assert torch.allclose(step, expected, rtol=1e-6, atol=0)
    assert len(set(ranks.values())) > 1


def test_a_model_is_as_it_was_after_its_gradients_were_collected(llama):
    llama.train()
    llama.model.layers[0].eval()
    llama.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    required = [value.requires_grad for value in llama.parameters()]
    gradients = gora.mean_gradients(llama, ["q_proj"], text_batches(2))
    assert list(gradients) == [f"model.layers.{index}.self_attn.q_proj" for index in (0, 1)]
    assert all(gradients[name].shape == (32, 32) and gradients[name].dtype == torch.float32 for name in gradients)
    assert llama.training and not llama.model.layers[0].training
    assert [value.requires_grad for value in llama.parameters()] == required
    assert all(value.grad is None for value in llama.parameters())
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_micro_batches_that_are_not_finite_are_left_out_and_named(llama):
    batches = list(text_batches(12))

    def loss(batch):
        spoiled = torch.equal(batch["input_ids"], batches[5]["input_ids"])
        return llama(**batch).loss * (float("nan") if spoiled else 1.0)

    gradients = gora.mean_gradients(llama, "attention", batches, loss)
    assert gradients.counted == 11 and list(gradients.left_out) == [5]
    assert sorted(gradients.losses) == [index for index in range(12) if index != 5]
    without = gora.mean_gradients(llama, "attention", [each for each in batches if each is not batches[5]])
    assert all(torch.allclose(gradients[name], without[name], rtol=1e-5, atol=1e-9) for name in without)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: Input should be greater than 0"),
        ({"gamma": -1}, "gamma: Input should be greater than or equal to 0"),
        ({"importance": "size"}, "importance: Input should be 'sensitivity'"),
        ({"importance": "above-noise"}, "above-noise compares two halves"),
    ],
)
def test_settings_that_cannot_be_used_are_named(made, settings, message):
    with pytest.raises(gora.InputError, match=message):
        gora.plan_adapter(made[4], **settings)


def test_values_of_another_adapter_are_refused(llama):
    gradients = gora.mean_gradients(llama, "attention", text_batches(2))
    _, values = gora.plan_adapter(gradients, rank=2)
    wrapped = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(gora.GoraError, match=r"asked for and not adapted: .*k_proj"):
        gora.set_initial_values(wrapped, values)
    of_q = {name: (a.repeat(5, 1), b.repeat(1, 5)) for name, (a, b) in values.items() if name.endswith("q_proj")}
    with pytest.raises(gora.GoraError, match=r"q_proj has \(2, 32\) values"):
        gora.set_initial_values(wrapped, of_q)
    with pytest.raises(gora.InputError, match="There are no micro-batches"):
        gora.mean_gradients(llama, "attention", [])


def test_what_is_offered_is_named_twice_and_imported_when_it_is_asked_for():
    assert set(gora.__all__) - {"__version__"} == set(importlib.import_module("gora.api").__all__)
    code = "import gora, sys; print('torch' in sys.modules); gora.plan_adapter; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gora.trian  # noqa: B018


def run_example(name, *arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    words = next(line for line in capsys.readouterr().out.splitlines() if "before" in line and "after" in line).split()
    return float(words[words.index("before,") - 1]), float(words[words.index("after") - 1])


def test_the_example_in_plain_torch_lowers_the_loss(monkeypatch, capsys):
    before, after = run_example("plain_torch.py", "--steps", "4", monkeypatch=monkeypatch, capsys=capsys)
    assert after < before - 0.2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install trl")
def test_the_example_with_trl_lowers_the_loss(tmp_path, monkeypatch, capsys):
    arguments = ("--steps", "8", "--output", str(tmp_path))
    before, after = run_example("trl_sft.py", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert after < before - 0.2
    assert (tmp_path / "adapter_model.safetensors").exists()
