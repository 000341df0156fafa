"""Collected gradients against autograd's own, micro-batch by micro-batch."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gora.errors import GoraError
from gora.gradients.collect import GradientSums, collect
from gora.models.checkpointing import recomputing_activations
from gora.models.targets import find_targets


def micro_batches(count, encoder_decoder=False, rows=3, length=14, vocabulary=97):
    """Padded micro-batches whose numbers of supervised tokens differ."""
    generator = torch.Generator().manual_seed(7)
    for index in range(count):
        ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
        labels = ids.clone()
        labels[:, : 2 + index] = -100
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        labels[0, 9:] = -100
        if encoder_decoder:
            labels = labels[:, 4:].contiguous()
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_of(model, batch):
    return model(**batch, use_cache=False).loss


def autograd_mean(model, targets, batches):
    """Mean of torch.autograd.grad over the micro-batches, in float64."""
    weights = [module.weight for module in targets.values()]
    totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    for batch in batches:
        for total, gradient in zip(totals, torch.autograd.grad(loss_of(model, batch), weights), strict=True):
            total += gradient
    for weight in weights:
        weight.requires_grad_(False)
    return {name: total / len(batches) for name, total in zip(targets, totals, strict=True)}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=97, n_positions=32)).eval()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
def test_every_target_s_gradient_equals_autograd_s_mean(family, targets, checkpointing, request):
    model = gpt2() if family == "gpt2" else request.getfixturevalue(family)
    model.requires_grad_(False)
    found = find_targets(model, targets)
    batches = list(micro_batches(5, encoder_decoder=family == "t5"))
    sums = GradientSums(model, found)
    with recomputing_activations(model, checkpointing):
        steps = collect(model, sums, batches, loss_of)
    assert steps == 5
    for name, expected in autograd_mean(model, found, batches).items():
        mean = sums.mean(name, steps)
        assert mean.dtype == torch.float32
        assert (mean - expected).norm() <= 1e-6 * expected.norm(), name


def test_every_micro_batch_counts_equally_for_every_target(llama):
    found = find_targets(llama, "attention")
    one, other = list(micro_batches(2))
    sums = GradientSums(llama, found)
    assert collect(llama, sums, [one, one, other, one], loss_of) == 4
    parts = [autograd_mean(llama, found, [batch]) for batch in (one, other)]
    for name in found:
        expected = (3 * parts[0][name] + parts[1][name]) / 4
        assert (sums.mean(name, 4) - expected).norm() <= 1e-6 * expected.norm()


def test_the_model_is_left_as_it_was(llama):
    llama.requires_grad_(False)
    llama.lm_head.weight.requires_grad_(True)
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    collect(llama, GradientSums(llama, find_targets(llama, "attention")), micro_batches(2), loss_of)
    assert [n for n, p in llama.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert all(torch.equal(before[name], value) for name, value in llama.state_dict().items())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in llama.parameters())


def test_two_layers_that_share_a_weight_have_the_sum_of_both_uses(llama):
    first, second = (layer.self_attn for layer in llama.model.layers)
    second.q_proj.weight = first.q_proj.weight
    found = {"first": first.q_proj, "second": second.q_proj}
    batches = list(micro_batches(3))
    sums = GradientSums(llama, found)
    collect(llama, sums, batches, loss_of)
    expected = autograd_mean(llama, {"first": first.q_proj}, batches)["first"]
    for name in found:
        assert (sums.mean(name, 3) - expected).norm() <= 1e-6 * expected.norm()


def test_bfloat16_gradients_are_summed_in_float32(llama):
    model = llama.bfloat16()
    found = find_targets(model, "q_proj")
    batches = list(micro_batches(8))
    sums = GradientSums(model, found)
    collect(model, sums, batches, loss_of)
    for name, expected in autograd_mean(model, found, batches).items():
        assert (sums.mean(name, 8) - expected).norm() <= 1e-6 * expected.norm(), name


def test_dropout_stays_off_under_activation_checkpointing(t5):
    assert t5.config.dropout_rate > 0
    batch = next(micro_batches(1, encoder_decoder=True))
    with recomputing_activations(t5, True):
        assert torch.equal(loss_of(t5, batch), loss_of(t5, batch))
        assert any(module.training for module in t5.modules())
    assert not any(module.training for module in t5.modules())


def test_a_loss_that_is_not_finite_names_its_micro_batch(llama):
    batches = list(micro_batches(3))
    batches[1]["labels"] = torch.full_like(batches[1]["labels"], -100)
    with pytest.raises(GoraError, match="micro-batch 1 is nan"):
        collect(llama, GradientSums(llama, find_targets(llama, "q_proj")), batches, loss_of)
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in llama.parameters())
