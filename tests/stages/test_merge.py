"""Merging: what is refused, what is rounded, and whole chains of other families."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

import gora.adapters.merge_job as merge_job
import gora.adapters.streamed_merge as streamed_merge
import gora.adapters.whole_merge as whole_merge
from gora.adapters.save import BaseNote, save_adapter
from gora.cli import app
from gora.errors import GoraError, InputError
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.probe import probe_logits
from gora.models.source import find_model
from gora.models.targets import find_targets
from gora.models.weight_files import read_stored_weights
from gora.recipe import load_recipe
from gora.recipe.schema import ModelSection
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.train import train
from tests.conftest import TINY
from tests.helpers.weights import flip_last_bit, rewrite_note

VOCABULARY = 4096


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def llama(seed=0, width=32):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=VOCABULARY, n_positions=64))


def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def save_base(folder, model, tokenizer, dtype=torch.float32):
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stored(base):
    return read_stored_weights(find_model(ModelSection(name=str(base)))).note


def adapt(base, folder, tokenizer, dtype=torch.float32, quantization=None):
    """An adapter as gora's training leaves it, with a B that is far from zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    fingerprint = weights_fingerprint(base_weights(model))
    wrapped = METHODS["lora"].wrap(
        model,
        Wrapping(targets=find_targets(model, "all-linear"), settings=AdapterSettings(rank=4, alpha=8.0, dropout=0.0)),
    )
    shake(wrapped)
    name = str(dtype).removeprefix("torch.")
    save_adapter(
        folder,
        wrapped,
        tokenizer,
        method="lora",
        base=BaseNote(dtype=name, quantization=quantization, fingerprint=fingerprint, weights=stored(base)),
        prompt_format={},
    )
    return folder


def shake(wrapped):
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """A float32 base and its adapter; tests copy what they change."""
    folder = tmp_path_factory.mktemp("made")
    base = save_base(folder / "base", llama(), tokenizer)
    return base, adapt(base, folder / "adapter", tokenizer)


@pytest.fixture
def copied(made, tmp_path):
    """A copy to be changed, as if another tool had written it: nothing lists what its files were."""
    return shutil.copytree(made[1], tmp_path / "adapter", ignore=shutil.ignore_patterns("manifest.json"))


def refuses(message, adapter, destination, **settings):
    with pytest.raises(InputError, match=message) as refused:
        merge(adapter, destination, **settings)
    return "\n".join(refused.value.problems)


def never(*_, **__):
    raise AssertionError("a model was loaded")


def exact_sum(base, adapter, scaling=2.0):
    """Base plus scaling B A of every adapted weight, in float64."""
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, weight in base.items():
        if (key := f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight").format("A") in factors:
            yield (
                name,
                weight.double() + scaling * factors[key.format("B")].double() @ factors[key.format("A")].double(),
            )


# --- the base ---------------------------------------------------------------------------------------------------------


def test_another_base_of_the_same_shape_is_refused(made, tmp_path, tokenizer):
    other = save_base(tmp_path / "other", llama(seed=5), tokenizer)
    refuses("not the base that the adapter was trained on", made[1], tmp_path / "merged", base=str(other))
    assert not (tmp_path / "merged").exists()


def test_the_same_base_in_another_folder_is_taken(made, tmp_path):
    moved = shutil.copytree(made[0], tmp_path / "moved")
    assert merge(made[1], tmp_path / "merged", base=str(moved)).largest_difference < 1e-4


def test_the_same_base_in_other_files_is_taken_without_a_look_at_the_weights_in_memory(made, tmp_path, monkeypatch):
    sharded = shutil.copytree(made[0], tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(made[0]).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").exists()
    monkeypatch.setattr(merge_job, "weights_fingerprint", never)
    merge(made[1], tmp_path / "merged", base=str(sharded))


def test_the_same_base_in_another_lossless_type_is_taken(tmp_path, tokenizer):
    base = save_base(tmp_path / "base", llama(), tokenizer, torch.bfloat16)
    adapter = adapt(base, tmp_path / "adapter", tokenizer, torch.bfloat16)
    wide = save_base(tmp_path / "wide", AutoModelForCausalLM.from_pretrained(base), tokenizer)
    assert load_file(wide / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    merge(adapter, tmp_path / "merged", base=str(wide))


def test_a_change_of_one_bit_outside_of_the_adapted_layers_is_refused_and_named(made, tmp_path):
    other = shutil.copytree(made[0], tmp_path / "other")
    flip_last_bit(other / "model.safetensors", "model.norm.weight")
    problems = refuses("with --base", made[1], tmp_path / "merged", base=str(other))
    assert problems == "1 of 21 tensors differ: model.norm.weight"


def test_the_adapter_of_a_quantised_base_is_merged_into_the_full_weights_of_that_base_only(made, tmp_path, tokenizer):
    adapter = adapt(made[0], tmp_path / "adapter", tokenizer, quantization="nf4")
    merge(adapter, tmp_path / "merged")
    other = save_base(tmp_path / "other", llama(seed=5), tokenizer)
    assert "tensors differ" in refuses("not the base", adapter, tmp_path / "no", base=str(other))
    # The files of that base were quantised: the full weights are in files that training has not seen.
    rewrite_note(adapter, lambda note: note.update(base_files_quantized=True))
    merge(adapter, tmp_path / "full", base=str(other))


def test_an_adapter_whose_note_says_nothing_of_files_is_compared_in_memory(copied, made, tmp_path, tokenizer):
    rewrite_note(copied, lambda note: note.pop("base_weights"))
    merge(copied, tmp_path / "merged")
    other = save_base(tmp_path / "other", llama(seed=5), tokenizer)
    refuses("not the base", copied, tmp_path / "no", base=str(other))


def test_a_bfloat16_base_is_known_again_whichever_type_it_was_trained_in(tmp_path, tokenizer):
    base = save_base(tmp_path / "base", llama(), tokenizer, torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        adapter = adapt(base, tmp_path / f"adapter-{name}", tokenizer, dtype)
        merge(adapter, tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {dtype}


@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_once_from_the_base_that_was_trained_on(made, tmp_path, tokenizer, trained_in, wanted):
    base, adapter = made
    if trained_in == torch.bfloat16:
        adapter = adapt(base, tmp_path / "adapter", tokenizer, trained_in)
    merge(adapter, tmp_path / "merged", dtype=str(wanted).removeprefix("torch."))
    found = load_file(tmp_path / "merged" / "model.safetensors")
    seen = {name: weight.to(trained_in) for name, weight in load_file(base / "model.safetensors").items()}
    compared = 0
    for name, exact in exact_sum(seen, adapter):
        step = 2**-8 if wanted == torch.bfloat16 else 2**-22
        assert found[name].dtype == wanted
        assert ((found[name].double() - exact).abs() <= exact.abs() * step + 1e-6).all()
        compared += 1
    assert compared == 14
    assert torch.equal(found["model.norm.weight"], seen["model.norm.weight"].to(wanted))


def test_the_probe_of_the_adapter_runs_in_the_type_of_training(made, tmp_path, monkeypatch):
    seen = []

    def remember(model, *texts):
        seen.append(model.get_input_embeddings().weight.dtype)
        return probe_logits(model, *texts)

    monkeypatch.setattr(streamed_merge, "probe_logits", remember)
    merge(made[1], tmp_path / "merged", dtype="bfloat16")
    assert seen == [torch.float32, torch.bfloat16]


def test_the_revision_in_the_adapter_is_that_of_its_base_and_of_no_other(copied, made, tmp_path, monkeypatch):
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"revision": "abc123"}))
    seen = []

    def stop(settings, **_):
        seen.append((settings.name, settings.revision))
        raise InputError("far enough")

    monkeypatch.setattr("gora.adapters.base.find_model", stop)
    refuses("far enough", copied, tmp_path / "merged")
    refuses("far enough", copied, tmp_path / "merged", base="some/other")
    assert seen == [(str(made[0]), "abc123"), ("some/other", None)]


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        "{}",
        '{"base_dtype": "int8", "base_fingerprint": "x"}',
        '{"base_dtype": "float32", "base_fingerprint": "x", "base_weights": "y"}',
        '{"base_dtype": "float32", "base_fingerprint": "x", "base_weights": {"fingerprint": 3, "tensors": 4}}',
    ],
)
def test_a_damaged_note_is_refused(copied, tmp_path, note):
    (copied / "gora.json").write_text(note)
    refuses(r"gora\.json", copied, tmp_path / "merged")


# --- the adapter ------------------------------------------------------------------------------------------------------


def rewrite(adapter, change):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"


def test_missing_and_foreign_tensors_are_named_without_warnings_of_peft(copied, tmp_path):
    def change(tensors):
        tensors["base_model.model.model.layers.7.mlp.down_proj.lora_B.weight"] = tensors.pop(FIRST)

    rewrite(copied, change)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        problems = refuses("does not hold the adapter", copied, tmp_path / "merged")
    assert f"{FIRST} is missing" in problems
    assert "layers.7.mlp.down_proj.lora_B.weight belongs to no adapted layer" in problems
    assert not [line for line in told if "adapter keys" in str(line.message)]


def test_many_missing_tensors_are_counted(copied, tmp_path):
    rewrite(copied, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    assert "and 11 more" in refuses("does not hold the adapter", copied, tmp_path / "merged")


@pytest.mark.parametrize("left", [0, 4, 5000, -8])
def test_a_cut_off_file_is_refused_before_the_base_is_loaded(copied, tmp_path, monkeypatch, left):
    monkeypatch.setattr(whole_merge, "load_model", never)
    path = copied / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refuses("not a whole safetensors file", copied, tmp_path / "merged")


def test_tensors_of_another_shape_are_refused(copied, tmp_path):
    rewrite(copied, lambda tensors: tensors.update({FIRST: torch.zeros(3, 4)}))
    assert "down_proj" in refuses("does not fit the base model", copied, tmp_path / "merged")


def test_an_adapter_without_note_of_a_base_of_other_layers_is_refused(copied, tmp_path, tokenizer):
    (copied / "gora.json").unlink()
    wide = save_base(tmp_path / "wide", llama(width=64), tokenizer)
    assert "size mismatch" in refuses("does not fit the base model", copied, tmp_path / "merged", base=str(wide))
    other = save_base(tmp_path / "gpt2", gpt2(), tokenizer)
    refuses("does not fit the base model", copied, tmp_path / "merged", base=str(other))


def test_the_adapter_of_another_tool_is_merged_in_the_own_type_of_its_base(tmp_path, tokenizer):
    base = save_base(tmp_path / "base", llama(), tokenizer, torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], use_rslora=True)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), config)
    shake(wrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        {"modules_to_save": ["lm_head"], "alora_invocation_tokens": [3]},
        {"layer_replication": [[0, 1], [0, 2]]},
    ],
)
def test_what_plain_folding_cannot_merge_is_refused_with_every_reason(copied, tmp_path, monkeypatch, change):
    monkeypatch.setattr(whole_merge, "load_model", never)
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | change))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = refuses("more than a plain LoRA adapter", copied, tmp_path / "merged")
    assert {line.partition(":")[0] for line in problems.splitlines()} == set(change)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"peft_type": "NONE"}', '{"peft_type": "IA3"}'])
def test_an_unusable_configuration_is_refused(copied, tmp_path, content):
    (copied / "adapter_config.json").write_text(content)
    refuses("cannot be read|only LoRA", copied, tmp_path / "merged")


def test_the_tokenizer_beside_the_adapter_may_run_code_only_when_told(made, tmp_path, monkeypatch):
    seen = []
    load = merge_job.load_tokenizer

    def remember(settings, source):
        seen.append((settings.tokenizer, source.trust_remote_code))
        return load(settings, source)

    monkeypatch.setattr(merge_job, "load_tokenizer", remember)
    merge(made[1], tmp_path / "merged", trust_remote_code=True)
    assert seen == [(str(made[1]), True)]


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kept"), [("float32", False), ("bfloat16", True)])
def test_a_small_difference_is_rounding_in_bfloat16_and_an_error_in_float32(made, tmp_path, monkeypatch, dtype, kept):
    write = streamed_merge.write_again

    def inexact(stored, folder, dtype, change, **told):
        def changed(tensor):
            return [1.01 * tensor.read()] if tensor.name == "model.norm.weight" else change(tensor)

        write(stored, folder, dtype, changed, **told)

    monkeypatch.setattr(streamed_merge, "write_again", inexact)
    if kept:
        merge(made[1], tmp_path / "merged", dtype=dtype)
    else:
        with pytest.raises(GoraError, match="it was not kept"):
            merge(made[1], tmp_path / "merged", dtype=dtype)
    assert (tmp_path / "merged").exists() is kept
    assert not list(tmp_path.glob(".writing-*"))


# --- the destination --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["run/adapter", "run", ".", "run/adapter/merged", "base", "base/merged", "run/../base"]
)
def test_the_destination_keeps_off_adapter_and_base(made, tmp_path, monkeypatch, place):
    monkeypatch.setattr(whole_merge, "load_model", never)
    base = shutil.copytree(made[0], tmp_path / "base")
    adapter = shutil.copytree(made[1], tmp_path / "run" / "adapter")
    refuses("is, contains or lies inside", adapter.parent, tmp_path / place, base=str(base), overwrite=True)
    assert (base / "model.safetensors").exists()
    assert (adapter / "adapter_model.safetensors").exists()


def test_the_destination_is_never_the_current_folder_or_above_it(made, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_merge, "load_model", never)
    here = tmp_path / "model" / "notes"
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    (here.parent / "config.json").write_text("{}")
    monkeypatch.chdir(here)
    for place in (".", "..", str(here.parent)):
        refuses("current folder", made[1], Path(place), overwrite=True)
    assert here.exists()


def test_overwrite_replaces_a_model_folder_and_nothing_else(made, tmp_path, monkeypatch):
    folder = tmp_path / "merged"
    merge(made[1], folder)
    refuses("Add --overwrite", made[1], folder)
    before = (folder / "model.safetensors").stat().st_ino
    merge(made[1], folder, overwrite=True)
    assert (folder / "model.safetensors").stat().st_ino != before
    monkeypatch.setattr(whole_merge, "load_model", never)
    for name in ("adapter_config.json", "plan.safetensors", "notes.txt"):
        (folder / name).write_text("mine")
        refuses("never replaced", made[1], folder, overwrite=True)
        (folder / name).unlink()
    for name in ("config.json", "manifest.json"):
        copy = shutil.copytree(folder, tmp_path / f"without-{name}", ignore=shutil.ignore_patterns(name))
        refuses("never replaced", made[1], copy, overwrite=True)
        assert (copy / "model.safetensors").exists()


def test_a_file_or_a_link_as_destination_is_refused_before_loading(made, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_merge, "load_model", never)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(made[0].parent / "elsewhere")
    for overwrite in (False, True):
        refuses("a file or a link", made[1], tmp_path / "file", overwrite=overwrite)
        refuses("a file or a link", made[1], tmp_path / "link", overwrite=overwrite)
        refuses("is a file", made[1], tmp_path / "file" / "merged", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


# --- recipes copy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_recipe_is_not_copied_over_a_folder(tmp_path, more):
    done = CliRunner().invoke(app, ["recipes", "copy", "quickstart", str(tmp_path), *more])
    assert isinstance(done.exception, InputError)
    assert "is a folder" in str(done.exception)
    assert not list(tmp_path.iterdir())


# --- whole chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "family", "count"), [(gpt2, AutoModelForCausalLM, 8), (t5, AutoModelForSeq2SeqLM, 32)], ids=["gpt2", "t5"]
)
def test_a_chain_ends_in_a_model_that_plain_transformers_loads(tmp_path, tokenizer, make, family, count):
    base = save_base(tmp_path / "base", make(), tokenizer)
    rows = [{"prompt": f"The sum of {n} and 2 is", "response": f"{n + 2}"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"preset: paper\nmodel: {{name: {base}, dtype: float32}}\n"
        f"data: {{train: {{path: {tmp_path / 'rows.jsonl'}}}, max_length: 48}}\n"
        "adapter: {rank: 4, targets: all-linear}\n"
        "gora: {steps: 2, gamma: 0.5}\n"
        "train: {batch_size: 8, micro_batch_size: 8, learning_rate: 1.0e-3, precision: fp32}\n"
        f"output: {tmp_path / 'run'}\n"
    )
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), []).recipe
    precompute(recipe)
    adapter = train(recipe).adapter
    merge(adapter, tmp_path / "merged")

    plain = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged = probe_logits(family.from_pretrained(tmp_path / "merged", dtype=torch.float32), plain)
    untouched = family.from_pretrained(base, dtype=torch.float32)
    before = probe_logits(untouched, plain)
    adapted = probe_logits(PeftModel.from_pretrained(untouched, adapter), plain)
    assert (merged - adapted).abs().max() < 1e-4
    assert (before - adapted).abs().max() > 1e-2
    assert len(load_file(adapter / "adapter_model.safetensors")) == 2 * count


def test_the_probe_begins_no_cache_which_some_models_cannot(tokenizer):
    model, asked = llama(), []
    model.register_forward_pre_hook(lambda module, args, told: asked.append(told), with_kwargs=True)
    probe_logits(model, tokenizer, ("a b",))
    assert [told["use_cache"] for told in asked] == [False]
