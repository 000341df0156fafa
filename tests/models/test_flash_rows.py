"""Rows end to end with FlashAttention: transformers' own path is told where rows begin, and seen to keep them apart."""

import re
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, MixtralConfig

from gora.data.collate import Collator
from gora.models.checkpointing import recomputing_activations
from gora.models.rows_apart import forward, keeps_apart, set_apart
from tests.helpers.flash import pretend_flash_attention, with_flash_attention

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "mistral with a window": MistralConfig(**SIZES, head_dim=8, sliding_window=5),
    "gemma3, some layers with a window": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=5),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
}
ROWS = [
    {"input_ids": ids, "labels": [-100] * cut + ids[cut:]}
    for ids, cut in (([5, 9, 3, 44, 20, 7, 8, 1, 30], 4), ([60, 2, 2], 1), ([33, 34, 35, 36, 40, 41, 42], 0))
]
IDS = [row["input_ids"] for row in ROWS]
BOUNDS = [0, 9, 12, 19]


@pytest.fixture(params=FAMILIES)
def plain(request):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(deepcopy(FAMILIES[request.param])).eval()
    with torch.no_grad():  # random models hardly look around: attention has to matter
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model


@pytest.mark.parametrize("recompute", [False, True])
def test_rows_end_to_end_give_the_losses_and_gradients_of_padded_ones(plain, monkeypatch, recompute):
    told = pretend_flash_attention(monkeypatch)
    model = with_flash_attention(deepcopy(plain))
    assert set_apart(model, IDS, nullcontext()) == ""
    assert keeps_apart(model)
    assert model.config._attn_implementation == "flash_attention_2"
    padded = plain(**Collator(0)(ROWS)).loss
    padded.backward()
    told.clear()
    with recomputing_activations(model, recompute):
        loss = forward(model, Collator(0).end_to_end(ROWS), use_cache=False).loss
        loss.backward()
    assert told == [BOUNDS] * (4 if recompute else 2)
    torch.testing.assert_close(loss, padded, rtol=1e-5, atol=1e-6)
    for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
        scale = max(1e-3, expected.grad.abs().max().item())
        assert (actual.grad - expected.grad).abs().max().item() <= 1e-5 * scale + 1e-6, name


def test_padded_batches_are_computed_as_before(plain, monkeypatch):
    told = pretend_flash_attention(monkeypatch)
    model = with_flash_attention(deepcopy(plain))
    set_apart(model, IDS, nullcontext())
    told.clear()
    torch.testing.assert_close(model(**Collator(0)(ROWS)).loss, plain(**Collator(0)(ROWS)).loss)
    assert told == [BOUNDS] * 2  # transformers leaves out the padding, and finds the rows by itself


def test_flash_attention_that_mixes_rows_is_found_and_rows_are_not_packed(plain, monkeypatch):
    pretend_flash_attention(monkeypatch, mixes=True)
    model = with_flash_attention(deepcopy(plain))
    reason = set_apart(model, IDS, nullcontext())
    assert re.fullmatch(
        r"with flash_attention_2, a (row gives|token sees) .*; `model.attention: sdpa` may do it", reason
    )
    assert not keeps_apart(model)
    assert model.config._attn_implementation == "flash_attention_2"


def test_flash_attention_that_has_not_been_tried_is_not_given_rows_end_to_end(plain):
    assert not keeps_apart(with_flash_attention(plain))


def test_attention_that_cannot_take_rows_end_to_end_says_what_can(plain):
    plain.set_attn_implementation("eager")
    assert "`model.attention` has to be auto, sdpa or flash_attention_2" in set_apart(plain, IDS, nullcontext())
    assert not keeps_apart(plain)
