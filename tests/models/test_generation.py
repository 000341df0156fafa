"""Models stop where they were trained to: plain transformers knows it from the saved folder."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from gora.models.generation import settle_generation, trained_generation
from gora.stages.run import run
from tests.helpers.checkpoints import SIZES, WORDS, recipe_for, save_llama, save_words

MARK = len(WORDS) + 4
CHAT = (
    "{% for m in messages %}{{ m.role + ' ' + m.content + ' <|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture
def chat(tmp_path):
    """A base that stops at </s>, with a chat tokenizer that ends turns with another token."""
    folder = save_llama(tmp_path / "base")
    save_words(folder, marks=["<|im_end|>"], eos_token="<|im_end|>", chat_template=CHAT)
    turns = [{"role": "user", "content": "what is one plus two"}, {"role": "assistant", "content": "it equals three"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 12)
    return folder


def trained(chat, tmp_path, **adapter):
    recipe = recipe_for(
        chat,
        tmp_path / "chat.jsonl",
        tmp_path / "run",
        data={"format": "chat"},
        adapter={"targets": "all-linear", "rank": 16, "alpha": 16, **adapter},
        train={"max_steps": 80, "epochs": 40, "learning_rate": 1e-2, "schedule": "constant"},
    )
    return run(recipe, merge_too="method" not in adapter).adapter


def answer(folder):
    """What plain transformers says, and whether the end token ended it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("user what is one plus two <|im_end|>assistant ", return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    return tokenizer.decode(said, skip_special_tokens=True).strip(), said[-1] == MARK


def test_the_merged_model_stops_at_the_end_token_of_its_training(chat, tmp_path):
    adapter = trained(chat, tmp_path)
    merged = tmp_path / "run" / "merged"
    assert answer(merged) == ("it equals three", True)
    assert AutoModelForCausalLM.from_pretrained(merged).config.eos_token_id == [MARK, 3]
    for folder in (merged, adapter):
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [MARK, 3]


def test_so_does_a_model_that_was_trained_in_full(chat, tmp_path):
    assert answer(trained(chat, tmp_path, method="full")) == ("it equals three", True)


# --- how the settings come about --------------------------------------------------------------------------------------


def model(**generation):
    made = LlamaForCausalLM(LlamaConfig(**SIZES))
    made.generation_config = GenerationConfig(**generation)
    return made


@pytest.mark.parametrize(
    ("own", "expected"), [(3, [MARK, 3]), ([7, 3], [MARK, 7, 3]), (None, [MARK, 3]), ([MARK, 3], [MARK, 3])]
)
def test_the_trained_token_stands_in_front_of_those_of_the_base(tmp_path, own, expected):
    tokenizer = save_words(tmp_path, marks=["<|im_end|>"], eos_token="<|im_end|>")
    settings = trained_generation(model(eos_token_id=own), tokenizer)
    assert settings.eos_token_id == expected


def test_a_token_that_all_agree_on_stays_a_number(tmp_path):
    settings = trained_generation(model(eos_token_id=3), save_words(tmp_path))
    assert (settings.eos_token_id, settings.pad_token_id) == (3, 0)


def test_padding_of_the_base_stays_and_what_it_lacks_is_filled_in(tmp_path):
    tokenizer = save_words(tmp_path, pad_token=None)
    assert trained_generation(model(pad_token_id=9), tokenizer).pad_token_id == 9
    assert trained_generation(model(), tokenizer).pad_token_id == 3


@pytest.mark.parametrize(
    "without_effect",
    [
        # Llama-2's and Vicuna's files name a temperature beside greedy decoding.
        {"temperature": 0.6, "top_p": 0.9},
        {"min_p": 0.1, "top_k": 7, "typical_p": 0.5},
        # Summarisers were saved with settings of the search with beams.
        {"length_penalty": 2.0, "early_stopping": True},
        {"output_scores": True, "output_attentions": True},
        {"use_cache": False, "cache_implementation": "static"},
        {"temperature": 0.6, "length_penalty": 2.0, "output_scores": True},
    ],
)
def test_settings_that_transformers_refuses_to_save_are_saved_as_what_they_do(tmp_path, without_effect):
    made = model(eos_token_id=3, **without_effect)
    settle_generation(made, save_words(tmp_path / "words", marks=["<|im_end|>"], eos_token="<|im_end|>"))
    made.save_pretrained(tmp_path / "model")
    again = GenerationConfig.from_pretrained(tmp_path / "model")
    assert not again.do_sample
    assert again.eos_token_id == [MARK, 3]


def test_settings_of_sampling_stay_where_the_base_samples(tmp_path):
    settings = trained_generation(model(do_sample=True, temperature=0.6), save_words(tmp_path))
    assert (settings.do_sample, settings.temperature) == (True, 0.6)


def test_an_encoder_decoder_keeps_the_start_of_its_decoder(tmp_path):
    config = T5Config(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    made = T5ForConditionalGeneration(config)
    settings = trained_generation(made, save_words(tmp_path))
    assert (settings.decoder_start_token_id, settings.eos_token_id) == (0, [3, 1])


def test_the_base_itself_is_left_alone(tmp_path):
    made = model(eos_token_id=3)
    trained_generation(made, save_words(tmp_path, marks=["<|im_end|>"], eos_token="<|im_end|>"))
    assert made.generation_config.eos_token_id == 3
    assert torch.equal(torch.tensor(made.config.eos_token_id), torch.tensor(3))
