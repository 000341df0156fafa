"""Half-downloaded models: the file is named, with what to do, before anything is loaded."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from gora.errors import InputError
from gora.models.load import load_model
from gora.models.source import find_model
from gora.models.tokenizer import load_tokenizer
from gora.recipe.schema import ModelSection
from gora.stages.run import run
from tests.helpers.checkpoints import POINTER, recipe_for, save_llama, save_rows, save_words

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return save_llama(tmp_path / "model")


@pytest.fixture
def sharded(folder):
    """The same model in two files with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refusal(folder):
    settings = ModelSection(name=str(folder))
    with pytest.raises(InputError) as refused:
        load_tokenizer(settings, find_model(settings))
    return str(refused.value)


def test_whole_folders_of_one_or_more_files_are_taken(sharded):
    settings = ModelSection(name=str(sharded))
    assert load_model(settings, find_model(settings), torch.device("cpu")).num_parameters() > 0


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_pointer_of_git_lfs_is_named_with_the_command_that_fetches_its_content(folder, file):
    (folder / file).write_text(POINTER)
    message = refusal(folder)
    assert f"{file} is a pointer of Git LFS" in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_empty_file_is_named(folder, file):
    (folder / file).write_bytes(b"")
    assert f"{file} is empty" in refusal(folder)


@pytest.mark.parametrize("left", [4, 9, 500, -8])
def test_weights_that_are_cut_off_are_named_without_being_read(folder, left):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    assert "model.safetensors is not a whole safetensors file" in refusal(folder)


def test_weights_without_a_header_are_named(folder):
    (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"not JSON at all!" + bytes(64))
    assert "its header cannot be read" in refusal(folder)


def test_a_header_longer_than_its_file_is_not_allocated(folder):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "not a whole safetensors file" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", POINTER, "", '{"weight_map": {}}', '{"metadata": {}}'])
def test_a_broken_index_is_named(sharded, content):
    (sharded / INDEX).write_text(content)
    assert INDEX in refusal(sharded)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = refusal(sharded)
    assert "1 of 2 files are missing" in message
    assert "model-00002-of-00002.safetensors" in message


def test_one_broken_shard_of_several_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").write_text(POINTER)
    assert "model-00002-of-00002.safetensors is a pointer" in refusal(sharded)


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/etc/outside.safetensors", "a/../../b.safetensors", "x.bin"]
)
def test_an_index_that_leads_out_of_the_folder_or_to_another_format_is_refused(sharded, place):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    assert "not a safetensors file inside the folder" in refusal(sharded)


def test_shards_that_are_links_as_in_the_hub_s_cache_are_taken(sharded, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for shard in sorted(sharded.glob("*.safetensors")):
        os.replace(shard, blobs / shard.name)
        shard.symlink_to(blobs / shard.name)
    assert find_model(ModelSection(name=str(sharded))).config.model_type == "llama"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_checkpoint_of_pickles_is_refused_with_the_way_to_convert_it(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert f"{name} is a pickle" in message
    assert "save_pretrained" in message


def test_a_gguf_file_and_a_folder_of_them_are_told_apart_from_models(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    unnamed = tmp_path / "weights"
    unnamed.write_bytes(b"GGUF" + bytes(64))
    assert "is a GGUF file" in refusal(file)
    assert "is a GGUF file" in refusal(unnamed)
    message = refusal(tmp_path)
    assert "GGUF files (model.gguf)" in message
    assert "safetensors" in message


def test_an_adapter_s_folder_and_one_without_configuration_are_no_models(tmp_path):
    assert "is not the folder of a model" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "gora merge" in refusal(tmp_path)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": None}, {"model_type": None}, {"model_type": "no-such"}]
)
def test_a_configuration_with_impossible_values_is_refused_in_one_line(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert "the folder cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", "</s>"), ("pad_token_id", 0.5), ("bos_token_id", [2, "<s>"])]
)
def test_tokens_that_are_not_named_by_their_ids_are_refused_by_file_and_key(folder, file, key, value):
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**content, key: value}))
    assert f"{file}: {key} must be the number of a token" in refusal(folder)


def test_a_folder_without_tokenizer_files_says_so(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    message = refusal(folder)
    assert "holds no tokenizer" in message
    assert "model.tokenizer" in message


def test_a_broken_tokenizer_of_another_folder_is_named_by_that_folder(folder, tmp_path):
    save_words(tmp_path / "words")
    (tmp_path / "words" / "tokenizer.json").write_text("{")
    settings = ModelSection(name=str(folder), tokenizer=str(tmp_path / "words"))
    with pytest.raises(InputError, match=r"words/tokenizer\.json is not valid JSON"):
        load_tokenizer(settings, find_model(settings))


def test_rows_that_are_a_pointer_are_named_as_one(folder, tmp_path):
    rows = save_rows(tmp_path / "rows.jsonl")
    rows.write_text(POINTER)
    with pytest.raises(InputError, match=r"rows\.jsonl is a pointer of Git LFS"):
        run(recipe_for(folder, rows, tmp_path / "run"))


def test_the_command_ends_with_exit_code_2_and_one_line(folder, tmp_path, gora_here):
    (folder / "model.safetensors").write_text(POINTER)
    recipe_for(folder, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run")
    code, out, err = gora_here("run", tmp_path / "run.json", cwd=tmp_path)
    assert code == 2
    assert "git lfs pull" in out + err
    assert "Traceback" not in out + err
    assert "reading" not in out


def test_a_folder_of_rows_is_not_taken_for_half_a_model(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(
        InputError, match=r"is not the folder of a model: it holds no config\.json, weights or tokenizer"
    ):
        find_model(ModelSection(name=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"config\.json is missing\. Download the whole model again"):
        find_model(ModelSection(name=str(tmp_path)))
