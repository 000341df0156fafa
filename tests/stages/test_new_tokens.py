"""`model.new_tokens`: embeddings are trained and saved with the adapter, merged, and refused where they cannot be."""

import json
import os
import shutil
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from gora.adapters.load import read_config
from gora.adapters.trainable import refuse_untrainable
from gora.errors import InputError, Interrupted
from gora.evaluation.models.load import load_subject
from gora.evaluation.models.locate import find_subject
from gora.evaluation.task import Sampling
from gora.methods import METHODS
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.new_tokens import grow_embeddings, token_layers
from gora.models.probe import probe_logits
from gora.models.source import find_model
from gora.runtime.engine import Engine
from gora.stages.merge import merge
from gora.stages.run import run
from gora.stages.train import train
from tests.helpers.callbacks import call_too
from tests.helpers.checkpoints import WORDS, recipe_for, save_llama, save_rows, save_words

KNOWN = len(WORDS) + 4
NEW = ["<a>", "<b>"]
IDS = [KNOWN, KNOWN + 1]
TIED = {"tie_word_embeddings": True}


def save_gpt2(folder):
    torch.manual_seed(0)
    small = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**small, vocab_size=KNOWN, eos_token_id=3, bos_token_id=2)).save_pretrained(folder)
    save_words(folder)
    return folder


def save_t5(folder):
    torch.manual_seed(0)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=KNOWN, **small, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_words(folder)
    return folder


def recipe(folder, base, method="lora", **sections):
    rows = folder / "rows.jsonl"
    save_rows(rows, answer="<b>")
    sections = {"model": {"new_tokens": NEW}, "adapter": {"method": method, "targets": "all-linear"}, **sections}
    return recipe_for(base, rows, folder / "run", **sections)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base without room for new tokens, trained with gora until it answers with one of them, and merged."""
    folder = tmp_path_factory.mktemp("tokens")
    base = save_llama(folder / "base", vocab_size=KNOWN)
    settings = {"max_steps": 120, "epochs": 40, "learning_rate": 5e-3, "schedule": "constant"}
    adapter = {"method": "gora", "targets": "all-linear", "rank": 16, "alpha": 16}
    run(recipe(folder, base, train=settings, adapter=adapter), merge_too=True)
    return folder


def test_the_trained_rows_are_saved_and_nothing_else_of_the_embeddings(made):
    held = load_file(made / "run" / "adapter" / "adapter_model.safetensors")
    rows = {name: value.shape for name, value in held.items() if "lora_" not in name}
    inside = "base_model.model.{}.token_adapter.trainable_tokens_delta"
    assert rows == {inside.format(layer): (2, 32) for layer in ("model.embed_tokens", "lm_head")}
    config = json.loads((made / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": IDS, "lm_head": IDS}


def test_the_merged_model_has_the_new_tokens_and_keeps_the_others_as_they_were(made):
    merged = load_file(made / "run" / "merged" / "model.safetensors")
    base = load_file(made / "base" / "model.safetensors")
    held = load_file(made / "run" / "adapter" / "adapter_model.safetensors")
    for layer in ("model.embed_tokens", "lm_head"):
        weight = merged[f"{layer}.weight"]
        assert torch.equal(weight[:KNOWN], base[f"{layer}.weight"])
        trained = held[f"base_model.model.{layer}.token_adapter.trainable_tokens_delta"]
        assert torch.equal(weight[KNOWN:], trained)
        assert (trained - base[f"{layer}.weight"].mean(dim=0)).abs().max() > 1e-2
    assert AutoTokenizer.from_pretrained(made / "run" / "merged")("what<b>")["input_ids"] == [4, IDS[1]]


def test_plain_transformers_writes_the_new_token_and_stops(made):
    folder = made / "run" / "merged"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("what is two plus four", return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert said == [IDS[1], tokenizer.eos_token_id]


def test_plain_peft_computes_what_the_merged_model_computes(made):
    folder = made / "run"
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    base = AutoModelForCausalLM.from_pretrained(made / "base")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    texts = ("what <a> is <b> one", "<b>")
    difference = probe_logits(adapted, tokenizer, texts) - probe_logits(merged, tokenizer, texts)
    assert difference.abs().max() < 1e-4


def test_the_base_is_known_again_by_its_own_weights(made):
    note = json.loads((made / "run" / "adapter" / "gora.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float32)
    assert note["base_fingerprint"] == weights_fingerprint(base_weights(base))


def test_the_run_is_evaluated_with_its_tokens(made):
    subject = load_subject(find_subject(str(made / "run")))
    assert subject.complete(["what is two plus four"], Sampling(max_new_tokens=8)) == [[" <b>"]]


@pytest.mark.parametrize(
    ("save", "family"),
    [
        (lambda folder: save_llama(folder, vocab_size=KNOWN, **TIED), AutoModelForCausalLM),
        (save_gpt2, AutoModelForCausalLM),
        (save_t5, AutoModelForSeq2SeqLM),
    ],
    ids=["tied", "gpt2", "t5"],
)
def test_tied_embeddings_are_trained_once_and_stay_tied(tmp_path, save, family):
    base = save(tmp_path / "base")
    adapter = run(recipe(tmp_path, base), merge_too=True).adapter
    held = load_file(adapter / "adapter_model.safetensors")
    (rows,) = (value for name, value in held.items() if "lora_" not in name)
    merged = family.from_pretrained(tmp_path / "run" / "merged")
    first, last = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert first.data_ptr() == last.data_ptr()
    assert torch.equal(first[KNOWN:], rows)
    before = family.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(first[:KNOWN], before)
    assert (rows - before.mean(dim=0)).abs().max() > 1e-3


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("full", "gora")])
def test_every_method_with_an_adapter_trains_them(tmp_path, method):
    base = save_llama(tmp_path / "base", vocab_size=KNOWN)
    steps = {"max_steps": 4, "epochs": 4}
    adapter = train(recipe(tmp_path, base, method, train=steps)).adapter
    held = load_file(adapter / "adapter_model.safetensors")
    mean = load_file(base / "model.safetensors")["model.embed_tokens.weight"].mean(dim=0)
    (rows,) = (value for name, value in held.items() if "embed_tokens" in name)
    assert rows.shape == (2, 32)
    # <a> is not in the rows, <b> is.
    assert torch.allclose(rows[0], mean, atol=1e-4)
    assert (rows[1] - mean).abs().max() > 1e-3
    if method != "adalora":
        assert merge(adapter, tmp_path / "merged").largest_difference < 1e-3


def test_a_token_that_the_model_knows_already_is_trained_where_it_is(tmp_path):
    base = save_llama(tmp_path / "base")
    adapter = run(recipe(tmp_path, base, model={"new_tokens": ["plus", "<b>"]}), merge_too=True).adapter
    plus = 4 + WORDS.index("plus")
    assert json.loads((adapter / "adapter_config.json").read_text())["trainable_token_indices"]["lm_head"] == [
        plus,
        KNOWN,
    ]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    assert merged.get_input_embeddings().weight.shape[0] == 32


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, monkeypatch):
    base = save_llama(tmp_path / "base", vocab_size=KNOWN)
    steps = {"max_steps": 6, "epochs": 6}
    unbroken = train(recipe(tmp_path, base, train=steps)).adapter
    again = recipe(tmp_path, base, train=steps).model_copy(update={"output": str(tmp_path / "again")})
    with monkeypatch.context() as patched:
        call_too(patched, SignalAt(3))
        with pytest.raises(Interrupted, match="checkpoint-3"):
            train(again)
    resumed = train(again, mode="resume").adapter
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (unbroken, resumed))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def refuses(match, tmp_path, base, **sections):
    with pytest.raises(InputError, match=match):
        run(recipe(tmp_path, base, **sections))
    assert not (tmp_path / "run" / "plan.safetensors").exists()


def test_full_fine_tuning_and_sharded_weights_are_refused_before_rows_are_read(tmp_path):
    base = save_llama(tmp_path / "base", vocab_size=KNOWN)
    refuses("full fine-tuning leaves the embeddings alone", tmp_path, base, adapter={"method": "full"})
    zero3 = recipe(tmp_path, base).model_copy(update={"distributed": "zero3"})
    with pytest.raises(InputError, match="cannot train them while zero3 shards weights"):
        refuse_untrainable(zero3, find_model(zero3.model), Engine.of("zero3"))


def test_a_head_with_a_bias_is_refused_which_peft_would_drop(tmp_path):
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 64, "vocab_size": KNOWN}
    GPTJForCausalLM(GPTJConfig(**small, bos_token_id=2, eos_token_id=3)).save_pretrained(tmp_path / "base")
    save_words(tmp_path / "base")
    refuses("output layer has a bias", tmp_path, tmp_path / "base")


def test_ids_beyond_the_embeddings_without_new_tokens_are_refused_with_the_setting_that_helps(tmp_path):
    base = save_llama(tmp_path / "base", vocab_size=KNOWN)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<b>"])
    tokenizer.save_pretrained(base)
    refuses("model.new_tokens", tmp_path, base, model={})


def test_such_adapters_are_plain_for_the_merge_alone(made):
    adapter = made / "run" / "adapter"
    with pytest.raises(InputError) as refused:
        read_config(adapter)
    assert refused.value.problems == ("trainable_token_indices: it holds embeddings of single tokens.",)
    assert read_config(adapter, with_tokens=True).peft_type == "LORA"


def test_a_merge_without_the_tokenizer_that_knows_them_is_refused(made, tmp_path):
    adapter = shutil.copytree(made / "run" / "adapter", tmp_path / "adapter")
    for file in ("tokenizer.json", "tokenizer_config.json", "manifest.json"):
        (adapter / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"holds the embedding of token {IDS[1]}"):
        merge(adapter, tmp_path / "merged")


# --- the rows themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_of_the_old_ones_and_the_old_ones_stay(llama, dtype):
    model = llama.to(dtype)
    before = {name: layer.weight.clone() for name, layer in token_layers(model).items()}
    grow_embeddings(model, 100)
    grow_embeddings(model, 50)
    assert model.config.vocab_size == 100
    for name, layer in token_layers(model).items():
        assert torch.equal(layer.weight[:97], before[name])
        mean = before[name].double().mean(dim=0).to(dtype)
        assert torch.equal(layer.weight[97:], mean.expand(3, -1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
