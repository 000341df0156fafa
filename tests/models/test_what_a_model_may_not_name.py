"""What a model's files may not do: have code fetched, and have files read that lie elsewhere."""

import json

import pytest
import torch

from gora.errors import InputError
from gora.models.load import empty_model, load_model
from gora.models.source import find_model
from gora.recipe.schema import ModelSection
from tests.helpers.checkpoints import save_llama


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def with_config(saved):
    """The model with settings added to its configuration."""
    path = saved / "config.json"
    before = path.read_text()

    def change(settings):
        path.write_text(json.dumps({**json.loads(before), **settings}))
        return ModelSection(name=str(saved))

    yield change
    path.write_text(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel@main:forward"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"experts_implementation": "someone/kernel"},
        {"attn_implementation": {"": "sdpa", "vision_config": "someone/kernel"}},
        {"text_config": {"inner": {"attn_implementation": "someone/kernel"}}},
        {"use_kernels": True},
        {"kernel_config": {"RMSNorm": "someone/kernel:Norm"}},
    ],
    ids=json.dumps,
)
def test_kernels_of_the_hub_are_refused_without_the_flag_for_code(with_config, settings):
    with pytest.raises(InputError, match=r"kernels of the hub.*--trust-remote-code") as refused:
        find_model(with_config(settings))
    assert any("kernel" in problem for problem in refused.value.problems)


def test_a_model_saved_with_flash_attention_is_computed_without_where_there_is_none(with_config):
    section = with_config({"attn_implementation": "flash_attention_2"})
    source = find_model(section)
    empty_model(source)
    assert load_model(section, source, torch.device("cpu")).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../b.safetensors", "a\0b", 3])
def test_weights_that_lie_elsewhere_are_refused(with_config, name):
    with pytest.raises(InputError, match="transformers_weights"):
        find_model(with_config({"transformers_weights": name}))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "a\0.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(saved, tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "outside.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not a safetensors file inside the folder"):
        find_model(ModelSection(name=str(folder)))
