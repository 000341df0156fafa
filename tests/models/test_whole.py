"""What a checkpoint holds beside the model that is loaded is named; a merge keeps it, or is refused."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from gora.adapters import mergeable
from gora.adapters.mergeable import refuse_unmergeable
from gora.errors import InputError
from gora.models.load import load_model
from gora.models.source import find_model
from gora.models.whole import not_loaded
from gora.recipe.schema import ModelSection, Recipe
from scripts.families.small import build

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def add(folder, **tensors):
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})


def of(folder):
    section = ModelSection(name=str(folder))
    return section, find_model(section)


def refuse(folder):
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    recipe = Recipe.model_validate(
        {"model": {"name": str(folder)}, "data": {"train": {"path": str(rows)}}, "output": str(folder / "run")}
    )
    refuse_unmergeable(recipe, of(folder)[1])


def test_a_plain_checkpoint_is_whole_and_may_be_merged(folder):
    assert not_loaded(of(folder)[1]) == []
    refuse(folder)


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        ("vision_tower.blocks.0.weight", "vision_tower"),
        ("model.visual.patch_embed.weight", "visual"),
        ("audio_tower.layers.0.fc1.weight", "audio_tower"),
        ("mtp.layers.0.proj.weight", "mtp"),
    ],
)
def test_towers_and_extra_heads_are_named_and_kept_by_a_merge(folder, tensor, word, capsys):
    add(folder, **{tensor: torch.ones(32, 32)})
    section, source = of(folder)
    assert [part.partition(" ")[0] for part in not_loaded(source)] == [word]
    refuse(folder)
    load_model(section, source, torch.device("cpu"))
    assert "1 tensors of the checkpoint are not loaded" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["preprocessor", "processor", "video_preprocessor"])
def test_a_processor_is_a_part_of_the_checkpoint(folder, kind):
    name = f"{kind}_config.json"
    (folder / name).write_text("{}")
    assert not_loaded(of(folder)[1]) == [name]
    refuse(folder)


@pytest.mark.parametrize("name", ["processor_config.json", "model.visual.patch_embed.weight"])
def test_a_merge_that_has_to_load_the_model_would_lose_them_and_is_refused(folder, name, monkeypatch):
    monkeypatch.setattr(mergeable, "streamable_model", lambda _: None)
    if name.endswith(".json"):
        (folder / name).write_text("{}")
    else:
        add(folder, **{name: torch.ones(32, 32)})
    with pytest.raises(InputError, match=r"--merge: .*(processor_config|visual)"):
        refuse(folder)


def test_constants_of_older_versions_are_no_loss(folder, tmp_path_factory):
    add(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert not_loaded(of(folder)[1]) == []
    gpt2 = tmp_path_factory.mktemp("gpt2")
    tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(gpt2)
    add(gpt2, **{"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)})
    assert not_loaded(of(gpt2)[1]) == []


def test_a_small_table_that_the_models_class_passes_over_is_no_loss(tmp_path):
    config = tf.T5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    tf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    add(tmp_path, **{name: torch.ones(32, 2)})
    assert not_loaded(of(tmp_path)[1]) == []


@pytest.mark.parametrize(
    ("tensor", "shape", "part"),
    [
        ("v_head.summary.weight", (1, 32), "v_head.summary.weight"),
        ("score.weight", (2, 32), "score.weight"),
        ("model.layers.2.mlp.up_proj.weight", (48, 32), "model.layers.2"),
        ("model.layers.0.self_attn.q_proj.bias", (32,), "model.layers.0"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (2, 32), "model.layers.0"),
    ],
)
def test_whatever_the_model_has_no_place_for_is_named_however_small(folder, tensor, shape, part):
    add(folder, **{tensor: torch.ones(shape)})
    assert [found.partition(" ")[0] for found in not_loaded(of(folder)[1])] == [part]
    # A merge that writes the checkpoint again keeps it.
    refuse(folder)


def test_many_parts_are_counted(folder):
    add(folder, **{f"head_{number}.weight": torch.ones(8, 8) for number in range(7)})
    assert not_loaded(of(folder)[1])[5:] == ["2 other parts"]


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "deepseek_v4", "gpt_oss", "falcon", "opt"])
def test_names_that_are_changed_while_loading_have_their_place(family, tmp_path):
    # Experts are stored one by one, and some checkpoints lack the first part of every name.
    build("causal", family, tmp_path)
    assert not_loaded(of(tmp_path)[1]) == []
    weights = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model.").removeprefix("transformer."): value for name, value in weights.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not_loaded(of(tmp_path)[1]) == []


def test_what_the_models_class_passes_over_is_named(folder, monkeypatch):
    # As the classes of DeepSeek and GLM pass over a layer for the prediction of several tokens.
    monkeypatch.setattr(tf.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    add(folder, **{"model.layers.2.eh_proj.weight": torch.ones(32, 64)})
    (found,) = not_loaded(of(folder)[1])
    assert found.startswith("model.layers.2 (")
