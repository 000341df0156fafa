"""Targets, fingerprints and loading, on the paper's architectures (empty) and on small models."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from gora.core.ranks import adapter_parameters
from gora.errors import InputError
from gora.models.fingerprint import base_weights, config_fingerprint, weights_fingerprint
from gora.models.load import empty_model, load_model
from gora.models.new_tokens import embedding_rows, refuse_untrainable_tokens
from gora.models.source import find_model
from gora.models.targets import find_targets, weight_shape
from gora.models.tokenizer import load_tokenizer
from gora.recipe.schema import ModelSection
from scripts.families.small import small_config
from tests.conftest import TINY
from tests.helpers.architectures import clip_vit_b_16, llama_2_7b, llama_3_1_8b, t5_base

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("build", "targets", "layers", "parameters"),
    [
        (t5_base, "all-linear", 192, 3_244_032),
        (llama_3_1_8b, "attention", 128, 6_815_744),
        (llama_2_7b, "all-linear", 224, 19_988_480),
        (clip_vit_b_16, r"vision_model\..*(_proj|fc\d)", 72, 1_327_104),
    ],
)
def test_lora_parameters_at_rank_8_equal_table_7(build, targets, layers, parameters):
    found = find_targets(build(), targets)
    shapes = [weight_shape(module) for module in found.values()]
    assert len(found) == layers
    assert adapter_parameters(shapes, [8] * len(shapes)) == parameters


def test_peft_counts_the_same_parameters_on_an_empty_model():
    from peft import LoraConfig, get_peft_model

    model = llama_3_1_8b()
    names = list(find_targets(model, "attention"))
    with torch.device("meta"):
        wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=names))
    assert wrapped.get_nb_trainable_parameters()[0] == 6_815_744


def test_all_linear_leaves_out_the_output_head(llama):
    kinds = {name.rpartition(".")[2] for name in find_targets(llama, "all-linear")}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_attention_of_an_encoder_decoder_holds_self_and_cross_attention(t5):
    names = list(find_targets(t5, "attention"))
    assert len(names) == 2 * 4 + 2 * 8
    assert "decoder.block.1.layer.1.EncDecAttention.v" in names


def test_attention_is_known_by_its_class_where_no_name_says_so():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("recurrent_gemma"))
    assert set(find_targets(model, "attention")) == {
        f"model.layers.1.temporal_block.{kind}_proj" for kind in ("q", "k", "v", "o")
    }


def test_a_model_without_linear_layers_is_refused_saying_so():
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(small_config("ibert"))
    with pytest.raises(InputError, match=r"leaves no layer to adapt\. This model has no linear layer"):
        find_targets(model, "all-linear")


def test_conv1d_layers_count_as_linear_with_their_shape_turned():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    shapes = {name: weight_shape(module) for name, module in find_targets(model, "all-linear").items()}
    assert shapes["transformer.h.0.attn.c_attn"] == (48, 16)
    assert shapes["transformer.h.0.mlp.c_proj"] == (16, 64)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("q_proj", ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        (["self_attn.q_proj"], ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        (["model.layers.1.mlp.up_proj"], ["model.layers.1.mlp.up_proj"]),
        (r".*layers\.1\..*_proj", None),
    ],
)
def test_targets_by_name_and_by_expression(llama, targets, expected):
    names = list(find_targets(llama, targets))
    assert names == expected or (expected is None and len(names) == 7 and all(".layers.1." in name for name in names))


def test_excluded_names_are_left_out(llama):
    names = find_targets(llama, "attention", ["k_proj", "layers.0.self_attn.v_proj"])
    assert len(names) == 5
    assert not any(name.endswith("k_proj") for name in names)


def test_an_unknown_name_is_answered_with_the_nearest_and_with_what_there_is(llama):
    with pytest.raises(InputError, match=r"(?s)down_proj.*did you mean 'q_proj'"):
        find_targets(llama, ["q_prj"])
    with pytest.raises(InputError, match="no linear layer's full name matches"):
        find_targets(llama, r"q_proj$")
    with pytest.raises(InputError, match="leaves no layer"):
        find_targets(llama, "q_proj", ["q_proj"])


def test_weights_fingerprint_does_not_depend_on_order_or_lossless_type(llama):
    model = llama.bfloat16()
    expected = weights_fingerprint(base_weights(model))
    assert weights_fingerprint(reversed(list(base_weights(model)))) == expected
    assert weights_fingerprint(base_weights(model.float())) == expected


def test_weights_fingerprint_sees_the_smallest_change(llama):
    before = weights_fingerprint(base_weights(llama))
    weight = llama.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(torch.inf))
    assert weights_fingerprint(base_weights(llama)) != before


def test_wrapping_does_not_change_the_fingerprint(llama):
    from peft import LoraConfig, get_peft_model

    before = weights_fingerprint(base_weights(llama))
    wrapped = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    assert weights_fingerprint(base_weights(wrapped)) == before


def test_config_fingerprint_sees_architecture_and_ignores_names_and_types(llama):
    config = llama.config
    before = config_fingerprint(config)
    config._name_or_path, config.dtype, config.use_cache = "elsewhere", torch.bfloat16, False
    assert config_fingerprint(config) == before
    config.num_key_value_heads = 4
    assert config_fingerprint(config) != before


def test_the_embedded_model_loads_frozen_and_in_float32_on_a_cpu():
    settings = ModelSection(name="builtin:tiny-6m")
    source = find_model(settings)
    model = load_model(settings, source, CPU)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_tokenizer(settings, source).eos_token == "</s>"


def test_a_missing_model_and_a_folder_without_weights_are_explained(tmp_path):
    with pytest.raises(InputError, match="neither a folder here nor a model that the hub answers for"):
        find_model(ModelSection(name="no-such/model"))
    with pytest.raises(InputError, match=r"does not ship with gora. Known models: builtin:tiny-6m"):
        find_model(ModelSection(name="builtin:tiny-7m"))
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    settings = ModelSection(name=str(tmp_path))
    with pytest.raises(InputError, match="the folder cannot be loaded"):
        load_model(settings, find_model(settings), CPU)


def test_weights_of_another_shape_and_unknown_parts_are_told_by_name(tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(TINY / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 4000}))
    settings = ModelSection(name=str(tmp_path))
    with pytest.raises(InputError, match="not of one model: download both again") as refused:
        load_model(settings, find_model(settings), CPU)
    stored = "model.embed_tokens.weight is (4096, 256) in the checkpoint, and (4000, 256) by config.json"
    assert stored in refused.value.problems
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "swishish"}))
    with pytest.raises(InputError, match="it names 'swishish', which this version of transformers does not know"):
        empty_model(find_model(settings))


def test_builtin_names_cannot_leave_their_folder():
    with pytest.raises(InputError, match="does not ship"):
        find_model(ModelSection(name="builtin:../../../gora"))


def test_code_of_the_model_s_own_is_refused_without_the_flag(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config"}}')
    canary = tmp_path / "ran"
    (tmp_path / "strange.py").write_text(f"open({str(canary)!r}, 'w').write('ran')\n")
    with pytest.raises(InputError, match="--trust-remote-code"):
        find_model(ModelSection(name=str(tmp_path)))
    assert not canary.exists()


def test_flash_attention_is_refused_with_every_reason_where_it_cannot_run():
    settings = ModelSection(name="builtin:tiny-6m", attention="flash_attention_2")
    with pytest.raises(InputError) as refused:
        load_model(settings, find_model(settings), CPU)
    assert len(refused.value.problems) == 3


def copied(tmp_path, change):
    """The embedded model with changed weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelSection(name=str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"),
        lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}),
    ],
)
def test_a_checkpoint_with_a_missing_or_misshapen_weight_is_refused_by_name(tmp_path, change):
    settings = copied(tmp_path, change)
    with pytest.raises(InputError, match=r"model"):
        load_model(settings, find_model(settings), CPU)


def test_a_missing_weight_is_named(tmp_path):
    settings = copied(tmp_path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        load_model(settings, find_model(settings), CPU)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    settings = copied(tmp_path, lambda weights: None)
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(settings, find_model(settings), CPU)


def test_a_local_model_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(TINY.parent)
    assert find_model(ModelSection(name="tiny-6m")).path == str(TINY)


def test_a_model_that_hashes_characters_has_no_rows_of_embeddings_to_run_out_of():
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(small_config("canine"))
    assert embedding_rows(model) is None
    with pytest.raises(InputError, match="no embeddings of single tokens"):
        refuse_untrainable_tokens(model)
