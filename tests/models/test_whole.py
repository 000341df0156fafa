"""What a checkpoint holds beside the model that is loaded is named; a merge keeps it, or is refused."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from gora.adapters import mergeable
from gora.adapters.mergeable import refuse_unmergeable
from gora.errors import InputError
from gora.models.load import find_model, load_model
from gora.models.whole import not_loaded
from gora.recipe.schema import ModelSection, Recipe

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


def test_small_leftovers_of_older_versions_are_no_loss(folder):
    add(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert not_loaded(of(folder)[1]) == []


def test_what_the_models_class_passes_over_is_named(folder, monkeypatch):
    # As the classes of DeepSeek and GLM pass over a layer for the prediction of several tokens.
    monkeypatch.setattr(tf.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    add(folder, **{"model.layers.2.eh_proj.weight": torch.ones(32, 64)})
    (found,) = not_loaded(of(folder)[1])
    assert found.startswith("model.layers.2 (")
