"""Quantised frozen bases: the same gradients, importances of the dequantised weights, and a run from end to end."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from gora import mean_gradients
from gora.core.importance import importance
from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.models.load import load_model
from gora.models.quantization import weight_bytes
from gora.models.source import find_model
from gora.models.targets import find_targets, weight_of, weight_shape
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.recipe.schema import ModelSection
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.train import train
from tests.conftest import TINY

pytest.importorskip("bitsandbytes")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = ["nf4", "int8"]


def quantized(kind):
    settings = ModelSection(name="builtin:tiny-6m", dtype="float32", quantization=kind)
    return load_model(settings, find_model(settings), DEVICE), settings


def micro_batches(count):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        ids = torch.randint(3, 500, (2, 24), generator=generator).to(DEVICE)
        yield {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_gives_the_products_of_its_own_operands_and_the_importance_of_its_dequantised_weight(kind):
    model, _ = quantized(kind)
    targets = find_targets(model, "attention")
    batches = list(micro_batches(3))
    exact = {name: torch.zeros(weight_shape(layer), dtype=torch.float64) for name, layer in targets.items()}

    class Exact:
        def add(self, key, gradient, inputs):
            left, right = (side.reshape(-1, side.shape[-1]).double().cpu() for side in (gradient, inputs))
            exact[key] += left.T @ right / len(batches)

    def loss_of(batch):
        return model(**batch, use_cache=False).loss

    attachment = Attachment(model, targets)
    attachment.receiver = Exact()
    with attachment.attached():
        for batch in batches:
            loss_of(batch).backward()
    gradients = mean_gradients(model, "attention", batches, loss_of)
    assert gradients.counted == 3
    assert len(targets) == len(exact) > 0
    whole = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).state_dict()
    for name, mean in exact.items():
        assert (gradients[name].double().cpu() - mean).norm() <= 1e-6 * mean.norm() != 0
        found, expected = weight_of(targets[name]).double().cpu(), whole[f"{name}.weight"].double()
        assert found.shape == expected.shape
        assert 0 < (found - expected).norm() < 0.12 * expected.norm()
        importances = (gradients.statistics.importance(name, "sensitivity"), importance(found, mean, "sensitivity"))
        assert importances[0] == pytest.approx(importances[1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_autograd_with_the_dequantised_weights(kind):
    """The error of the layer's own arithmetic remains: int8 also rounds its inputs."""
    model, _ = quantized(kind)
    batch = next(micro_batches(1))
    gradients = mean_gradients(model, "attention", [batch], lambda b: model(**b, use_cache=False).loss)
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).to(DEVICE).requires_grad_(False)
    linear = dict(model.named_modules())
    with torch.no_grad():
        for name, layer in find_targets(plain, "all-linear").items():
            layer.weight.copy_(weight_of(linear[name]))
    weights = [layer.weight.requires_grad_(True) for layer in find_targets(plain, "attention").values()]
    expected = torch.autograd.grad(plain(**batch, use_cache=False).loss, weights)
    for name, gradient in zip(gradients, expected, strict=True):
        assert (gradients[name] - gradient).norm() < (1e-4 if kind == "nf4" else 0.1) * gradient.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_of_a_quantised_model_is_what_its_weights_take(kind):
    model, settings = quantized(kind)
    plain = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    estimate = weight_bytes(plain, settings, DEVICE)
    assert estimate < weight_bytes(plain, settings.model_copy(update={"quantization": None}), DEVICE)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    assert estimate == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_goes_from_gradients_to_a_merged_model(kind, tmp_path, capsys):
    overrides = ["gora.steps=2", "gora.micro_batch_size=2", "train.max_steps=2", f"output={tmp_path / 'run'}"]
    overrides += [f"model.quantization={kind}", "data.train.max_rows=32", "data.eval.max_rows=8", "model.dtype=float32"]
    recipe = load_recipe("quickstart", overrides).recipe
    precompute(recipe)
    adapter = train(recipe).adapter
    assert read_plan(tmp_path / "run" / "plan.safetensors").steps == 2
    assert json.loads((adapter / "gora.json").read_text())["base_quantization"] == kind
    with pytest.raises(InputError, match="does not belong to this model"):
        train(load_recipe("quickstart", [*overrides, "model.quantization=null"]).recipe, mode="overwrite")
    merge(adapter, tmp_path / "merged")
    assert f"trained on a base in {kind}" in " ".join(capsys.readouterr().out.split())
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_without_bitsandbytes_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("gora.models.quantization.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'gora-finetune\[bitsandbytes\]'"):
        quantized("nf4")
