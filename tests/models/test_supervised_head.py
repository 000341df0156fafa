"""The loss on supervised tokens alone is the model's own, and so are its gradients."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from gora.data.collate import Collator
from gora.models import supervised_head
from gora.models.supervised_head import PARTS, token_losses, use_supervised_head

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ROWS = [
    {"input_ids": ids, "labels": [-100] * cut + ids[cut:]}
    for ids, cut in (([5, 9, 3, 44, 20, 7, 8, 1, 30], 4), ([60, 2, 2], 1), ([33, 34, 35, 36, 40, 41, 42], 0))
]
IDS = [row["input_ids"] for row in ROWS]
OWN_WAY = {
    "scaled logits": CohereConfig(**SIZES, **HEADS),
    "divided logits": GraniteConfig(**SIZES, **HEADS, logits_scaling=4.0),
    "a loss for its router": Qwen3MoeConfig(
        **SIZES, **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, output_router_logits=True
    ),
}


def built(config):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(deepcopy(config))


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("config", [LlamaConfig(**SIZES, **HEADS), MixtralConfig(**SIZES, **HEADS)])
def test_loss_and_gradients_are_those_of_the_model(config, chunk, monkeypatch):
    monkeypatch.setattr(supervised_head, "_LOGITS", 64 * chunk)
    monkeypatch.setattr(supervised_head, "_LEAST", 1)
    plain, model = built(config), built(config)
    for each in (plain, model):
        each.get_output_embeddings().weight.requires_grad_(False)
    assert use_supervised_head(model, IDS, nullcontext()) == ""
    batch = Collator(0)(ROWS)
    expected, actual = plain(**batch), model(**batch)
    assert actual.logits is None
    torch.testing.assert_close(actual.loss, expected.loss)
    (2 * expected.loss).backward()
    (2 * actual.loss).backward()
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_a_trained_output_layer_gets_its_gradient():
    plain, model = built(LlamaConfig(**SIZES, **HEADS)), built(LlamaConfig(**SIZES, **HEADS))
    assert use_supervised_head(model, IDS, nullcontext()) == ""
    for each in (plain, model):
        each(**Collator(0)(ROWS)).loss.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_calls_without_labels_give_logits_as_before():
    plain, model = built(LlamaConfig(**SIZES, **HEADS)), built(LlamaConfig(**SIZES, **HEADS))
    use_supervised_head(model, IDS, nullcontext())
    ids = torch.tensor([IDS[0]])
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert model.generate(ids, **settings).tolist() == plain.generate(ids, **settings).tolist()


@pytest.mark.parametrize("kind", OWN_WAY)
def test_a_model_with_more_than_its_output_layer_keeps_its_own_way(kind):
    model = built(OWN_WAY[kind])
    assert use_supervised_head(model, IDS, nullcontext())
    assert model(**Collator(0)(ROWS)).logits is not None


def test_the_gradient_agrees_with_float64():
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=True).requires_grad_(False)
    hidden, targets = torch.randn(30, 16, requires_grad=True), torch.randint(0, 50, (30,))
    token_losses(head, hidden, targets).mean().backward()
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ head.weight.double().T + head.bias.double()
    torch.nn.functional.cross_entropy(logits, targets).backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


def test_no_supervised_token_is_a_loss_of_zero_with_a_graph():
    model = built(LlamaConfig(**SIZES, **HEADS))
    assert use_supervised_head(model, IDS, nullcontext()) == ""
    batch = Collator(0)([{**row, "labels": [-100] * len(row["labels"])} for row in ROWS])
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0


def test_micro_batches_that_share_a_pass_have_a_mean_each():
    model = built(LlamaConfig(**SIZES, **HEADS))
    assert use_supervised_head(model, IDS, nullcontext()) == ""
    silent = {**ROWS[1], "labels": [-100] * len(ROWS[1]["labels"])}
    batches = [ROWS[:2], [silent], ROWS[2:]]
    alone = [model(**Collator(0)(rows)) for rows in batches]
    counts = tuple(int((Collator(0)(rows)["labels"][:, 1:] != -100).sum()) for rows in batches)
    shared = model(**Collator(0)([row for rows in batches for row in rows]), **{PARTS: counts})
    torch.testing.assert_close(shared.loss, torch.stack([each.loss for each in alone]))
    torch.testing.assert_close(
        torch.autograd.grad(shared.loss.sum(), model.model.embed_tokens.weight)[0],
        torch.autograd.grad(sum(each.loss for each in alone), model.model.embed_tokens.weight)[0],
    )
