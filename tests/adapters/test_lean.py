"""Adapters computed in the type of their base: PEFT's results within bfloat16's noise, float32 gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from gora.adapters import lean
from gora.adapters.lean import _LowRank, make_lean, values_at_rest

CONFIG = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def adapted(dtype=torch.bfloat16, **settings):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**CONFIG, num_attention_heads=4, num_key_value_heads=2)).to(dtype)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}, **settings)
    model = get_peft_model(base, config)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return model


def outcome(model, dtype=torch.bfloat16, cast=True):
    ids = torch.arange(3, 33)[None]
    with torch.autocast("cpu", dtype, enabled=cast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_loss_and_gradients_are_those_of_float32_within_the_noise_of_peft():
    exact_loss, exact = outcome(adapted(torch.float32), cast=False)
    peft_loss, peft = outcome(adapted())
    model = adapted()
    assert make_lean(model)
    loss, gradients = outcome(model, cast=False)
    assert abs(loss - exact_loss) <= 2 * abs(peft_loss - exact_loss) + 0.01
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        noise = (peft[name] - exact[name]).norm() / exact[name].norm()
        assert (gradient - exact[name]).norm() / exact[name].norm() <= 2 * noise + 0.01, name


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_layers_that_are_more_than_lora_stay_with_peft(settings):
    model = adapted(**settings)
    assert not make_lean(model)
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_float32_base_stays_with_peft():
    assert not make_lean(adapted(torch.float32))


def test_micro_batches_of_a_step_share_what_is_multiplied_and_the_next_step_has_its_own(monkeypatch):
    made = []
    narrow = lean._narrow
    monkeypatch.setattr(lean, "_narrow", lambda *each: made.append(each) or narrow(*each))
    alone, model = adapted(), adapted()
    assert make_lean(alone)
    assert make_lean(model)
    layers = 2 * CONFIG["num_hidden_layers"]
    for _ in range(2):
        expected = [outcome(alone, cast=False)[0] for _ in range(3)]
        made.clear()
        with values_at_rest():
            losses = [outcome(model, cast=False)[0] for _ in range(3)]
        assert len(made) == layers
        assert torch.equal(torch.stack(losses), torch.stack(expected))
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            if one.grad is not None:
                assert torch.equal(one.grad, other.grad)
                for value in (one, other):
                    value.data -= 10.0 * value.grad  # as some engines do, behind the back of autograd
                    value.grad = None


def test_switching_the_adapter_off_gives_the_base():
    model = adapted()
    make_lean(model)
    ids = torch.arange(3, 20)[None]
    with model.disable_adapter(), torch.no_grad():
        switched_off = model(input_ids=ids).logits
    with torch.no_grad():
        base = model.unload()(input_ids=ids).logits
    assert torch.equal(switched_off, base)


@pytest.mark.parametrize("rank", [1, 5, 8, 11])
def test_both_passes_are_those_of_plain_products_at_any_rank(rank):
    generator = torch.Generator().manual_seed(rank)
    x, weight, bias, a, b, upstream = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 7, 12), (9, 12), (9,), (rank, 12), (9, rank), (2, 7, 9))
    )
    leaves = [value.requires_grad_(True) for value in (x, a, b)]
    expected = x @ weight.T + bias + 0.5 * (x @ a.T) @ b.T
    wanted = torch.autograd.grad(expected, leaves, upstream)
    found = _LowRank.apply(x, weight, bias, a, b, 0.5)
    torch.testing.assert_close(found, expected)
    for mine, other in zip(torch.autograd.grad(found, leaves, upstream), wanted, strict=True):
        # Gradients of A and B are summed in float32.
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)
