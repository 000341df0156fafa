"""An adapter that PEFT cannot save is written without it; names of base weights survive PEFT's wrappers."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from gora.adapters import save as saving
from gora.models.fingerprint import base_weights
from gora.models.load import load_model
from gora.models.source import find_model
from gora.recipe.load import load_recipe
from gora.stages.train import train

FEW = (
    "train.max_steps=1",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "gora.steps=2",
    "data.train.max_rows=32",
    "data.eval.max_rows=4",
    "data.max_length=96",
)


def recipe_of(folder, *settings):
    return load_recipe("quickstart", [f"output={folder}", "adapter.method=lora", *FEW, *settings]).recipe


@pytest.mark.parametrize("function", ["save_pretrained", "state_dict"])
def test_an_adapter_that_peft_cannot_save_is_written_without_it(tmp_path, monkeypatch, capsys, function):
    def fail(*args, **kwargs):
        raise TypeError("unhashable type")

    recipe = recipe_of(tmp_path / "run")
    with monkeypatch.context() as patch:
        if function == "save_pretrained":
            patch.setattr(PeftModel, "save_pretrained", fail)
        else:
            patch.setattr(saving, "get_peft_model_state_dict", fail)
        trained = train(recipe)
    assert "PEFT could not save the adapter (TypeError: unhashable type)" in capsys.readouterr().out
    by_peft = train(recipe_of(tmp_path / "again"))
    own, theirs = (load_file(made.adapter / "adapter_model.safetensors") for made in (trained, by_peft))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    source = find_model(recipe.model)
    wrapped = PeftModel.from_pretrained(load_model(recipe.model, source, torch.device("cpu")), trained.adapter)
    loaded = wrapped.state_dict()
    assert all(torch.equal(loaded[name.replace(".weight", ".default.weight")], value) for name, value in own.items())


@pytest.mark.parametrize("method", ["pissa", "lora-ga", "lora-ga-peft"])
def test_a_method_that_moves_base_weights_is_saved_as_one_for_the_base_without_peft(tmp_path, monkeypatch, method):
    def fail(*args, **kwargs):
        raise TypeError("unhashable type")

    settings = (f"adapter.method={method}",)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "get_peft_model_state_dict", fail)
        trained = train(recipe_of(tmp_path / "run", *settings))
    by_peft = train(recipe_of(tmp_path / "again", *settings))
    own, theirs = (load_file(made.adapter / "adapter_model.safetensors") for made in (trained, by_peft))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    one, other = (json.loads((made.adapter / "adapter_config.json").read_text()) for made in (trained, by_peft))
    assert {key: one[key] for key in ("r", "lora_alpha", "init_lora_weights")} == {
        key: other[key] for key in ("r", "lora_alpha", "init_lora_weights")
    }
    assert trained.losses["final"] == pytest.approx(by_peft.losses["final"], rel=1e-6)


def test_fingerprinted_names_are_those_of_the_base_under_nested_wrappers():
    import transformers as tf
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = tf.MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    model = tf.MixtralForCausalLM(config)
    before = {name: value.clone() for name, value in base_weights(model)}
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=both))
    after = dict(base_weights(wrapped))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
