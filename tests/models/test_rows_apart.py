"""Rows end to end: no token of one reaches another, and nothing of the result changes."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    Lfm2MoeConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3Config,
)

from gora.data.collate import Collator
from gora.models import rows_apart
from gora.models.checkpointing import recomputing_activations
from gora.models.kernels import compile_blocks
from gora.models.rows_apart import forward, keeps_apart, set_apart
from scripts.families.small import small_config

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "mistral with a window": MistralConfig(**SIZES, **HEADS, head_dim=8, sliding_window=5),
    "gemma3, some layers with a window": Gemma3TextConfig(**SIZES, **HEADS, head_dim=8, sliding_window=5),
    "qwen3": Qwen3Config(**SIZES, **HEADS, head_dim=8),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
    "mixtral": MixtralConfig(**SIZES, **HEADS, num_local_experts=4),
}
SHORT_CONVOLUTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
MIXING = {
    "lfm2": Lfm2Config(**SIZES, **SHORT_CONVOLUTION),
    "lfm2, a mixture": Lfm2MoeConfig(**SIZES, **SHORT_CONVOLUTION, moe_intermediate_size=16, num_experts=4),
    "jamba": small_config("jamba"),
    "falcon": FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
}
ROWS = [
    {"input_ids": ids, "labels": [-100] * cut + ids[cut:]}
    for ids, cut in (([5, 9, 3, 44, 20, 7, 8, 1, 30], 4), ([60, 2, 2], 1), ([33, 34, 35, 36, 40, 41, 42], 0))
]


def built(config, *, looks_around=True):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(deepcopy(config)).eval()
    with torch.no_grad():  # random models hardly look around: attention has to matter
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 and looks_around else 1.0)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def apart(request):
    """A model of the family as it was, and one that keeps rows apart."""
    plain, model = built(FAMILIES[request.param]), built(FAMILIES[request.param])
    assert set_apart(model, [row["input_ids"] for row in ROWS], nullcontext()) == ""
    assert keeps_apart(model)
    assert not keeps_apart(plain)
    return plain, model


def test_each_row_gives_what_it_gives_alone(apart):
    plain, model = apart
    together = forward(model, Collator(0).end_to_end(ROWS)).logits[0].split([len(r["input_ids"]) for r in ROWS])
    for row, logits in zip(ROWS, together, strict=True):
        alone = plain(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


def test_other_tokens_in_a_row_change_no_bit_of_its_neighbours(apart):
    _, model = apart
    changed = [{**ROWS[0], "input_ids": [11] * 9}, *ROWS[1:]]
    before, after = (forward(model, Collator(0).end_to_end(rows)).logits[0] for rows in (ROWS, changed))
    assert not torch.equal(before[:9], after[:9])
    torch.testing.assert_close(before[9:], after[9:], rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel for rows of several lengths needs a GPU")
def test_on_a_gpu_too_other_tokens_in_a_row_change_no_bit_of_its_neighbours(apart, monkeypatch):
    used = []
    by_kernel = rows_apart._by_varlen
    monkeypatch.setattr(rows_apart, "_by_varlen", lambda *each: used.append(each) or by_kernel(*each))
    model = deepcopy(apart[1]).to("cuda", torch.bfloat16)
    changed = [{**ROWS[0], "input_ids": [11] * 9}, *ROWS[1:]]
    batches = (Collator(0).end_to_end(rows) for rows in (ROWS, changed))
    on_gpu = ({key: value.cuda() if key != "rows" else value for key, value in batch.items()} for batch in batches)
    before, after = (forward(model, batch).logits[0] for batch in on_gpu)
    assert used
    assert not torch.equal(before[:9], after[:9])
    assert torch.equal(before[9:], after[9:])


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_the_padded_batch(apart, recompute):
    plain, model = apart
    plain.zero_grad()
    model.zero_grad()
    padded = plain(**Collator(0)(ROWS)).loss
    padded.backward()
    with recomputing_activations(model, recompute):
        loss = forward(model, Collator(0).end_to_end(ROWS), use_cache=False).loss
        loss.backward()
    torch.testing.assert_close(loss, padded, rtol=1e-5, atol=1e-6)
    for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
        scale = max(1e-3, expected.grad.abs().max().item())
        assert (actual.grad - expected.grad).abs().max().item() <= 1e-5 * scale + 1e-6, name


def compiled_for_each(rows_of_batches):
    """How many graphs there were after each batch; the logits are those of a model that is not compiled."""
    plain, model = built(FAMILIES["llama"]), built(FAMILIES["llama"])
    for each in (plain, model):
        each.set_attn_implementation(rows_apart.NAME)
    torch._dynamo.reset()
    compile_blocks(model)
    for block in model.model.layers:
        # The real compiler takes a minute on a CPU; what is compiled how often is decided before it.
        block.compile(dynamic=True, backend="eager")
    counts = []
    for rows in rows_of_batches:
        batch = Collator(0).end_to_end(rows)
        found, expected = forward(model, batch), forward(plain, batch)
        found.loss.backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    return counts


LONG = {"input_ids": [7, 8, 9, 10, 11] * 9, "labels": [7, 8, 9, 10, 11] * 9}
BATCHES = (ROWS, [*ROWS, ROWS[1]], [ROWS[2], LONG], [*ROWS, *ROWS, LONG], [ROWS[1], ROWS[1]])


def test_compiled_blocks_are_compiled_once_whatever_rows_come():
    first, *later = compiled_for_each(BATCHES)
    assert first > 0
    assert later == [first] * 4


def test_blocks_with_the_kernel_for_rows_of_several_lengths_are_compiled_once_and_whole(monkeypatch):
    monkeypatch.setattr(rows_apart, "_varlen", in_place_of_the_kernel)
    monkeypatch.setattr(rows_apart, "_varlen_serves", lambda *asked: True)
    torch._dynamo.utils.counters.clear()
    first, *later = compiled_for_each(BATCHES)
    assert 0 < first <= 2  # the first block's input needs no gradient
    assert later == [first] * 4
    assert not torch._dynamo.utils.counters["graph_break"]


@torch.library.custom_op("apart::kernel", mutates_args=())
def kernel(query: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
    """Something that a compiler cannot look into, of the same arguments."""
    return query * (bounds[-1] + longest) / 100


kernel.register_fake(lambda query, bounds, longest: torch.empty_like(query))
kernel.register_autograd(lambda context, gradient: (gradient, None, None))


def in_place_of_the_kernel(query, key, value, bounds, bounds_of_keys, longest, longest_key, **settings):
    return kernel(query, bounds, longest)


def test_padded_batches_and_generation_are_as_before(apart):
    plain, model = apart
    batch = Collator(0)(ROWS)
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)
    prompt = torch.tensor([ROWS[2]["input_ids"]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert model.generate(prompt, **settings).tolist() == plain.generate(prompt, **settings).tolist()


@pytest.mark.parametrize("family", MIXING)
@pytest.mark.parametrize("looks_around", [True, False])
def test_a_model_that_would_mix_rows_is_left_as_it_was(family, looks_around):
    model, plain = (built(MIXING[family], looks_around=looks_around) for _ in range(2))
    assert set_apart(model, [row["input_ids"] for row in ROWS], nullcontext())
    assert not keeps_apart(model)
    batch = Collator(0)(ROWS)
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits)


@pytest.mark.parametrize("share", [1.0, 0.003, 1e-6])
def test_a_leak_between_rows_is_found_however_faint(monkeypatch, share):
    from gora.models import rows_apart

    right = rows_apart._row_by_row

    def leaks(query, key, value, *rest):
        wrong = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return (1 - share) * right(query, key, value, *rest) + share * wrong.transpose(1, 2)

    monkeypatch.setattr(rows_apart, "_row_by_row", leaks)
    model = built(FAMILIES["llama"])
    assert set_apart(model, [row["input_ids"] for row in ROWS], nullcontext())
    assert model.config._attn_implementation == "sdpa"
