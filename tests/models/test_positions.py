"""How many tokens a model takes: scaled rotary positions, other limits, and no limit at all."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    FalconConfig,
    FalconForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Qwen2Config,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    XLNetConfig,
)

from gora.errors import InputError
from gora.evaluation.models.classify import predict
from gora.evaluation.models.generate import Generator
from gora.models.encoders import longest_input
from gora.models.positions import positions_of, real_limit
from gora.stages.run import run
from tests.helpers.checkpoints import SIZES, recipe_for, save_llama, save_rows, save_words


def rope(kind, factor, original=None, **more):
    found = {"rope_type": kind, "factor": factor, "rope_theta": 10000.0, **more}
    return found if original is None else {**found, "original_max_position_embeddings": original}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("written", "scaling", "expected"),
    [
        (32768, None, 32768),
        (32768, rope("yarn", 4.0, 32768), 131072),  # Qwen2.5 as its card says
        (131072, rope("yarn", 4.0, 32768), 131072),  # already multiplied
        (4096, rope("linear", 4.0), 16384),
        (4096, rope("dynamic", 2.0), 8192),
        (131072, rope("llama3", 8.0, 8192, **LLAMA3), 131072),  # Llama 3.1: more than the factor alone gives
        (8192, rope("llama3", 8.0, 8192, **LLAMA3), 65536),
        (131072, rope("longrope", 32.0, 4096, **LONG), 131072),
        (4096, rope("longrope", 32.0, 4096, **LONG), 131072),
        (2048, rope("linear", 1.0), 2048),
    ],
)
def test_scaled_rotary_positions_reach_as_far_as_the_factor_says(written, scaling, expected):
    settings = {} if scaling is None else {"rope_parameters": scaling}
    config = Qwen2Config(**{**SIZES, "max_position_embeddings": written}, **settings)
    assert positions_of(config) == expected


def test_longrope_whose_factor_follows_from_two_lengths():
    config = Phi3Config(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 48,
            "long_factor": [2.0] * 48,
        },
    )
    assert positions_of(config) == 131072


def test_models_whose_layers_have_positions_of_two_kinds():
    config = Gemma3TextConfig(max_position_embeddings=1000)
    config.rope_parameters = {"sliding_attention": rope("default", 1.0), "full_attention": rope("linear", 8.0)}
    assert positions_of(config) == 8000


@pytest.mark.parametrize("config", [XLNetConfig(), BloomConfig(), T5Config(), FalconConfig(alibi=True)])
def test_models_without_a_limit_have_none(config):
    assert positions_of(config) is None


def test_a_model_with_biases_by_distance_reads_beyond_the_number_of_its_configuration():
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = FalconForCausalLM(FalconConfig(**sizes, alibi=True, max_position_embeddings=4)).eval()
    ids = torch.arange(9)[None]
    assert longest_input(model) is None
    # Earlier tokens are told alike, whatever stands beyond that number.
    assert torch.allclose(model(ids).logits[:, :4], model(ids[:, :4]).logits, atol=1e-5)


@pytest.mark.parametrize("value", [-1, 0, None, int(1e30), 1e30, 10**9, True, "512"])
def test_numbers_that_stand_for_no_limit(value):
    assert real_limit(value) is None


@pytest.mark.parametrize("value", [1, 512, 131072, 10_000_000, 4096.0])
def test_numbers_that_are_one(value):
    assert real_limit(value) == int(value)


def test_learned_positions_stay_what_they_are():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=24))
    assert longest_input(gpt2) == 24
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    roberta = RobertaForSequenceClassification(
        RobertaConfig(**small, intermediate_size=16, max_position_embeddings=26, pad_token_id=1)
    )
    assert longest_input(roberta) == 24


# --- where lengths are checked ----------------------------------------------------------------------------------------


def test_rows_within_scaled_positions_are_trained(tmp_path):
    model = save_llama(tmp_path / "model", max_position_embeddings=8, rope_parameters=rope("yarn", 4.0, 8))
    trained = run(recipe_for(model, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run"))
    assert trained.steps == 2


def test_rows_beyond_them_are_refused(tmp_path):
    model = save_llama(tmp_path / "model", max_position_embeddings=4, rope_parameters=rope("yarn", 2.0, 4))
    with pytest.raises(InputError, match="the model takes 8"):
        run(recipe_for(model, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run"))


def test_answers_are_cut_where_scaled_positions_end(tmp_path):
    settings = {**SIZES, "max_position_embeddings": 8}
    tokenizer = save_words(tmp_path)
    for scaling, room in ((None, 3), (rope("linear", 4.0), 27)):
        model = LlamaForCausalLM(LlamaConfig(**settings, **({} if scaling is None else {"rope_parameters": scaling})))
        assert Generator(model, tokenizer, batch_size=1).room(5, 100) == room


@pytest.mark.parametrize("limit", [-1, int(1e30), 512])
def test_a_classifier_reads_as_much_as_its_positions_take_whatever_the_tokenizer_says(tmp_path, limit):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=12, **small)).eval()
    tokenizer = save_words(tmp_path)
    tokenizer.model_max_length = limit
    assert predict(model, tokenizer, ["what is one " * 20]) == predict(model, tokenizer, ["what is one " * 4])


@pytest.mark.parametrize("limit", [-1, int(1e30)])
def test_a_tokenizer_without_a_limit_warns_of_none(tmp_path, capsys, limit):
    model = save_llama(tmp_path / "model")
    tokenizer = save_words(model)
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(model)
    run(recipe_for(model, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run"))
    assert "the tokenizer says" not in capsys.readouterr().out
