"""The estimate's formulas: numbers computed by hand, and what autograd really keeps of small models."""

import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gora.estimate.memory import Arithmetic, Batch, Sharing, kept_of_block, logits_bytes, pass_memory, training_memory
from gora.estimate.shapes import read_shape
from gora.estimate.sizes import divisors, largest_that_fits, next_smaller
from gora.gradients.attach import Attachment
from gora.gradients.probe import Probe
from gora.models.targets import find_targets

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3, norms of queries and keys": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "gemma3, four norms": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16)),
    "phi3, fused layers": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
}
BF16 = Arithmetic(width=2, weight_width=2, on_gpu=False)


@pytest.fixture
def llama_8b():
    """The numbers of Llama-3.1-8B with two blocks, and its attention layers."""
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128256,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=2,
                num_attention_heads=32,
                num_key_value_heads=8,
                tie_word_embeddings=False,
            )
        )
    return read_shape(model, find_targets(model, "attention"))


def test_a_block_of_llama_8b_is_read_off_the_empty_model(llama_8b):
    block = llama_8b.blocks[1]
    assert (block.hidden, block.queries, block.keys, block.heads) == (4096, 4096, 1024, 32)
    assert (block.norms, block.mlp, block.inner, block.adapted) == (2 * 4096, 14336, 3, 4)
    # Queries, keys and values are given the same; attention's output is kept by attention.
    assert (block.adapted_inputs, block.new_inputs) == (4 * 4096, 4096)
    assert llama_8b.vocabulary == 128256
    attention = 4096 * (4096 + 1024 + 1024) + 4096 * 4096
    assert block.weights == attention + 3 * 4096 * 14336 + 2 * 4096
    assert llama_8b.weights == 2 * block.weights + 2 * 128256 * 4096 + 4096


def test_what_a_block_keeps_is_the_sum_of_its_parts(llama_8b):
    block, batch = llama_8b.blocks[1], Batch(rows=2, length=512)
    norms, feed_forward = 4 * 2 * 4096, 2 * 3 * 14336
    attention = 2 * (2 * 4096 + 2 * 1024) + 4 * 32
    taps, adapters = 2 * 4096, 2 * 4 * 4096 + 2 * 8 * 4
    assert kept_of_block(block, batch, BF16) == 1024 * (norms + attention + feed_forward + taps)
    assert kept_of_block(block, batch, BF16, rank=8) == 1024 * (norms + attention + feed_forward + adapters)


def test_logits_count_thrice_in_float32_and_only_for_the_tokens_that_have_them_at_a_time(llama_8b):
    batch = Batch(rows=2, length=512)
    assert logits_bytes(llama_8b, batch, BF16) == 12 * 1024 * 128256
    chunked = Arithmetic(width=2, weight_width=2, logit_tokens=256)
    assert logits_bytes(llama_8b, batch, chunked) == 12 * 256 * 128256


def test_the_peak_of_training_adds_weights_states_activations_and_logits(llama_8b):
    batch, trained = Batch(rows=1, length=512), 10**6
    memory = training_memory(llama_8b, batch, BF16, Sharing(), weights=10**9, trained=trained, rank=8)
    assert (memory.weights, memory.gradients, memory.optimizer) == (10**9, 4 * 10**6, 8 * 10**6)
    assert memory.adapters == 4 * 10**6 + 2 * 10**6
    blocks = 2 * kept_of_block(llama_8b.blocks[1], batch, BF16, rank=8)
    assert memory.activations == blocks + 512 * 4096 * 4
    assert memory.logits == 12 * 512 * 128256
    assert memory.total == sum(memory.parts.values()) == 10**9 + 18 * 10**6 + memory.activations + memory.logits


def test_recomputing_keeps_the_ends_of_blocks_and_one_block_where_that_is_more_than_the_logits(llama_8b):
    batch = Batch(rows=1, length=512)
    recomputing = Arithmetic(width=2, weight_width=2, on_gpu=False, checkpointing=True)
    memory = pass_memory(llama_8b, batch, recomputing, Sharing(), weights=0, sums=0)
    assert memory.activations == 512 * 4096 * (2 * 2 + 4)
    few_logits = Arithmetic(width=2, weight_width=2, on_gpu=False, checkpointing=True, logit_tokens=1)
    memory = pass_memory(llama_8b, batch, few_logits, Sharing(), weights=0, sums=0)
    block, passing = kept_of_block(llama_8b.blocks[1], batch, BF16), 512 * 2 * (3 * 14336 + 4096)
    assert memory.activations + memory.logits == 512 * 4096 * (2 * 2 + 4) + block + passing


@pytest.mark.parametrize(
    ("sharing", "weights", "adapters", "gradients", "optimizer", "buffers", "host"),
    [
        (Sharing(), 800, 4 + 2, 4, 8, 0, 0),
        (Sharing(processes=4), 800, 4 + 2, 4, 8, 4, 0),
        (Sharing(processes=4, shards_optimizer=True, bucket=7), 800, 4 + 2, 1, 3, 7, 0),
        (Sharing(processes=4, shards_optimizer=True, offloads=True, bucket=7), 800, 4 + 2, 0, 0, 7, 4),
        (Sharing(processes=4, shards_optimizer=True, shards_weights=True), 200, 1 + 2, 1, 3, 800, 0),
    ],
    ids=["none", "ddp", "zero2", "zero2-offload", "zero3 and fsdp"],
)
def test_each_engine_shares_out_what_it_is_made_for(
    llama_8b, sharing, weights, adapters, gradients, optimizer, buffers, host
):
    memory = training_memory(llama_8b, Batch(rows=1, length=8), BF16, sharing, weights=800, trained=1, rank=8)
    found = (memory.weights, memory.adapters, memory.gradients, memory.optimizer, memory.buffers, memory.host)
    assert found == (weights, adapters, gradients, optimizer, buffers, host)


def test_the_largest_micro_batch_is_a_divisor_within_the_limit():
    class Memory:
        def __init__(self, rows):
            self.total = 100 + 10 * rows

    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert largest_that_fits(divisors(12), Memory, 165) == 6
    assert largest_that_fits(divisors(12), Memory, 105) is None
    assert [next_smaller(rows) for rows in (8, 12, 9, 3, 1)] == [4, 6, 3, 1, None]


def kept_by_autograd(model, batch, context, bf16):
    """Bytes of all storages that the forward pass saves for the backward pass, beside weights."""
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    arithmetic = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with context, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
        held = model(**batch, use_cache=False).logits
    assert held.requires_grad
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_keeps(family, targets, dtype, padded):
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype).requires_grad_(False).eval()
    layers, bf16 = find_targets(model, targets), dtype == torch.bfloat16
    shape = read_shape(model, layers)
    ids = torch.randint(2, 64, (2, 64))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 40:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    arithmetic = Arithmetic(width=dtype.itemsize, weight_width=dtype.itemsize, on_gpu=False)
    size = Batch(rows=2, length=64, padded=padded)
    last_norm = 4 * size.tokens * shape.hidden

    attachment = Attachment(model, layers)
    attachment.receiver = Probe(torch.device("cpu"))
    measured = kept_by_autograd(model, batch, attachment.attached(), bf16)
    estimate = sum(kept_of_block(block, size, arithmetic) for block in shape.blocks) + last_norm
    assert estimate == pytest.approx(measured, rel=0.05)

    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=list(layers)))
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data = value.data.float()
    trained = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    measured = kept_by_autograd(wrapped, batch, contextlib.nullcontext(), bf16)
    estimate = sum(kept_of_block(block, size, arithmetic, rank=4) for block in shape.blocks) + last_norm
    assert estimate + (2 * trained if bf16 else 0) == pytest.approx(measured, rel=0.05)
