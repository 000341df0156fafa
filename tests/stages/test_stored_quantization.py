"""Bases that are stored in 4 or 8 bits: the checkpoint counts as much as the recipe, wherever bits are asked about."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from gora.adapters.mergeable import refuse_unmergeable
from gora.adapters.trainable import refuse_untrainable
from gora.errors import InputError
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.models.vllm import check_vllm
from gora.evaluation.task import Sampling
from gora.models.load import empty_model, load_model
from gora.models.quantization import quantization_of, weight_bytes
from gora.models.source import find_model
from gora.models.targets import find_targets, weight_of
from gora.recipe.schema import ModelSection
from gora.runtime.engine import Engine
from gora.stages.merge import merge
from gora.stages.run import run
from tests.helpers.checkpoints import recipe_for, save_llama, save_rows, save_words

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
BITS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
KINDS = [*BITS, "fp8"]


def save_fp8(full, folder):
    """As fine-grained FP8 checkpoints are stored: float8 weights and a scale for each block, here the whole weight."""
    save_llama(folder, hidden_size=64, intermediate_size=128)
    stored = {}
    for name, weight in load_file(full / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
        else:
            stored[name] = weight
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    describe(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})


def describe(folder, quantization):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A model in whole weights, and stored in each of the formats."""
    folder = tmp_path_factory.mktemp("stored")
    full = save_llama(folder / "full", hidden_size=64, intermediate_size=128)
    for name, settings in BITS.items():
        packed = AutoModelForCausalLM.from_pretrained(
            full, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
        )
        packed.save_pretrained(folder / name)
        save_words(folder / name)
    save_fp8(full, folder / "fp8")
    save_rows(folder / "rows.jsonl")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def trained(request, bases):
    """A run with GoRA on a base that is stored in that format."""
    kind = request.param
    recipe = recipe_for(bases / kind, bases / "rows.jsonl", bases / f"run-{kind}", adapter={"method": "gora"})
    return kind, bases, run(recipe).adapter


def described(folder, **settings):
    section = ModelSection(name=str(folder), **settings)
    return section, find_model(section)


# --- training and merging ---------------------------------------------------------------------------------------------


def test_the_note_of_the_adapter_says_how_the_base_was_held(trained):
    kind, _, adapter = trained
    assert json.loads((adapter / "gora.json").read_text())["base_quantization"] == kind


def test_a_merge_into_the_stored_base_is_refused_before_it_is_loaded(trained, tmp_path, monkeypatch):
    kind, _, adapter = trained
    monkeypatch.setattr("gora.adapters.whole_merge.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=rf"is stored in {kind}.*--base FULL_MODEL"):
        merge(adapter, tmp_path / "merged")


def test_a_merge_into_the_whole_weights_adds_the_adapter_to_them(trained, tmp_path, capsys):
    kind, bases, adapter = trained
    merge(adapter, tmp_path / "merged", base=str(bases / "full"))
    assert f"trained on a base in {kind}" in " ".join(capsys.readouterr().out.split())
    merged, full = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", bases / "full"))
    factors = load_file(adapter / "adapter_model.safetensors")
    scaled = json.loads((adapter / "adapter_config.json").read_text())
    name = "model.layers.0.self_attn.v_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    alpha = scaled["alpha_pattern"].get(name, scaled["lora_alpha"])
    expected = full[f"{name}.weight"].double() + alpha / len(a) * b @ a
    assert (merged[f"{name}.weight"].double() - expected).abs().max() < 1e-6
    assert torch.equal(merged["model.norm.weight"], full["model.norm.weight"])
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_the_run_is_evaluated_on_the_stored_base(trained):
    _, _, adapter = trained
    for reference in (adapter, adapter.parent):
        subject = load_subject(find_subject(str(reference)))
        assert len(subject.complete(["what is two plus four"], Sampling(max_new_tokens=2))) == 1


# --- what the checkpoint says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_tells_how_its_weights_are_held(bases, kind):
    section, source = described(bases / kind)
    assert quantization_of(section, source) == kind
    model = load_model(section, source, CPU)
    exact = load_file(bases / "full" / "model.safetensors")
    for name, layer in find_targets(model, "all-linear").items():
        found, expected = weight_of(layer).float(), exact[f"{name}.weight"]
        assert 0 < (found - expected).norm() < 0.2 * expected.norm()


def test_a_whole_checkpoint_is_held_as_the_recipe_says(bases):
    assert quantization_of(*described(bases / "full")) is None
    assert quantization_of(*described(bases / "full", quantization="nf4")) == "nf4"


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_of_memory_is_what_the_weights_take(bases, kind):
    section, source = described(bases / kind, dtype="float32")
    held = sum(tensor.numel() * tensor.element_size() for tensor in load_model(section, source, CPU).parameters())
    assert weight_bytes(empty_model(source), section, CPU) == pytest.approx(held, rel=0.05)


def test_a_recipe_that_agrees_with_the_checkpoint_is_taken_and_one_that_does_not_is_refused(bases):
    section, source = described(bases / "nf4", quantization="nf4")
    assert load_model(section, source, CPU).is_quantized
    with pytest.raises(InputError, match=r"model.quantization: int8, but .* is stored in nf4"):
        described(bases / "nf4", quantization="int8")


# --- refusals ---------------------------------------------------------------------------------------------------------


def recipe(bases, kind, **sections):
    return recipe_for(bases / kind, bases / "rows.jsonl", bases / "refused", **sections)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["full", "pissa", "olora", "lora-ga", "milora"])
def test_methods_that_change_base_weights_are_refused_before_rows_are_read(bases, kind, method):
    asked = recipe(bases, kind, adapter={"method": method})
    with pytest.raises(InputError, match=rf"adapter.method: {method} .* {kind}"):
        run(asked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["zero3", "fsdp"])
def test_engines_that_shard_weights_are_refused(bases, kind, engine):
    asked = recipe(bases, kind)
    with pytest.raises(InputError, match=f"{engine} shards base weights, which {kind} ones cannot be"):
        refuse_untrainable(asked, find_model(asked.model), Engine.of(engine))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_at_the_end_of_the_run_is_refused_at_its_start(bases, kind):
    asked = recipe(bases, kind)
    with pytest.raises(InputError, match=rf"--merge: .* is stored in {kind}.*--base FULL_MODEL"):
        refuse_unmergeable(asked, find_model(asked.model))


def test_a_classifier_and_vllm_want_whole_weights(bases, monkeypatch):
    section, source = described(bases / "nf4")
    monkeypatch.setattr("gora.evaluation.models.vllm.find_spec", lambda name: object())
    with pytest.raises(InputError, match="not given a base in nf4"):
        check_vllm(section, source)
    rows = recipe(bases, "nf4", model={"head": "classification"}, data={"choices": ["no", "yes"]})
    with pytest.raises(InputError, match="classification needs a base in whole weights; this one is in nf4"):
        refuse_untrainable(rows, find_model(rows.model, labels=["no", "yes"]), Engine.of("ddp"))


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "hqq", "bitnet", "fbgemm_fp8"])
def test_formats_that_cannot_be_trained_are_refused_in_one_line_with_what_to_install(tmp_path, gora_here, method):
    base = save_llama(tmp_path / "base")
    describe(base, {"quant_method": method, "bits": 4})
    recipe_for(base, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run")
    code, out, err = gora_here("run", tmp_path / "run.json", cwd=tmp_path)
    said = [line for line in (out + err).splitlines() if line.strip()]
    assert (code, len(said)) == (2, 1)
    assert f"is stored in {method}" in said[0]
    assert "pip install" in said[0]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_formats_are_refused_for_what_their_layers_lack_where_their_package_is_installed(
    tmp_path, monkeypatch, method
):
    base = save_llama(tmp_path / "base")
    describe(base, {"quant_method": method, "bits": 4})
    recipe = recipe_for(base, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run")
    monkeypatch.setattr("gora.models.quantization.find_spec", lambda name: object())
    source = find_model(recipe.model)
    with pytest.raises(InputError, match="whatever is installed: its layers hold packed numbers and no weight"):
        refuse_untrainable(recipe, source, Engine.of("ddp"))


def test_a_layer_of_packed_numbers_is_no_target(tmp_path):
    class Packed(torch.nn.Module):
        """As gptqmodel has them: numbers in int32, scales, and no weight."""

        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.zeros(8, 64, dtype=torch.int32))

    model = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path))
    model.model.layers[0].self_attn.q_proj = Packed()
    names = [name for name in find_targets(model, "attention") if ".layers.0." in name]
    assert [name.rpartition(".")[2] for name in names] == ["k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("quantization", "package"),
    [
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"gora-finetune\[bitsandbytes\]"),
        ({"load_in_8bit": True}, r"gora-finetune\[bitsandbytes\]"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, quantization, package):
    describe(save_llama(tmp_path), quantization)
    monkeypatch.setattr("gora.models.quantization.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"needs '?{package}'?: pip install '?{package}'?"):
        described(tmp_path)
