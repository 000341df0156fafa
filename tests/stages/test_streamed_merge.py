"""Merging by reading and writing one weight at a time: PEFT's result in float32, a nearer one in bfloat16."""

import errno
import hashlib
import json
import os
import signal

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import gora.adapters.streamed_merge as streamed_merge
import gora.adapters.whole_merge as whole_merge
from gora.adapters.merge_job import weighted_adapters
from gora.adapters.mergeable import refuse_unmergeable
from gora.errors import GoraError, InputError
from gora.models.source import find_model
from gora.recipe.schema import Recipe
from gora.stages.merge import merge
from tests.conftest import TINY
from tests.helpers import forks

SIZES = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
LLAMA = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
TEXT = AutoModelForCausalLM
FAMILIES = {
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)), TEXT, ["q_proj", "down_proj"]),
    "tied": (
        lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True)),
        TEXT,
        ["k_proj", "up_proj"],
    ),
    "conv1d": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=4096, n_positions=64)),
        TEXT,
        ["c_attn", "c_proj"],
    ),
    "fused": (lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**LLAMA)), TEXT, ["qkv_proj", "gate_up_proj"]),
    "encoder and decoder": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=4096, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
            )
        ),
        AutoModelForSeq2SeqLM,
        ["q", "wi", "wo"],
    ),
}


def save(folder, model, **settings):
    model.save_pretrained(folder, **settings)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def adapt(base, folder, family=TEXT, targets=("q_proj", "down_proj"), seed=1, dtype=torch.float32, **settings):
    """An adapter of PEFT that is far from zero, by plain PEFT."""
    settings = {"r": 4, "lora_alpha": 11, "target_modules": list(targets), **settings}
    wrapped = get_peft_model(family.from_pretrained(base, dtype=dtype), LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name or (name.endswith("bias") and settings.get("bias", "none") != "none"):
                value.normal_(std=0.1)
            elif "magnitude" in name:
                value.mul_(torch.rand_like(value) + 0.5)
    wrapped.save_pretrained(folder)
    return folder


def by_peft(base, adapter, family=TEXT, dtype=torch.float32, **settings):
    """What PEFT makes of the two."""
    model = family.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, str(adapter), **settings).merge_and_unload()


def held(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def refuse_loading(monkeypatch):
    monkeypatch.setattr(whole_merge, "load_model", lambda *_, **__: pytest.fail("the whole model was loaded"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("base"), FAMILIES["llama"][0](), max_shard_size="100KB")


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True, "rank_pattern": {"layers.0.mlp": 9}}])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_float32_the_result_is_that_of_peft_bit_for_bit(tmp_path, monkeypatch, name, more):
    refuse_loading(monkeypatch)
    make, family, targets = FAMILIES[name]
    torch.manual_seed(0)
    folder = save(tmp_path / "base", make(), max_shard_size="100KB")
    adapter = adapt(folder, tmp_path / "adapter", family, targets, **more)
    merge(adapter, tmp_path / "merged")
    expected = by_peft(folder, adapter, family).state_dict()
    found = family.from_pretrained(tmp_path / "merged").state_dict()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    changed = [key for key, value in held(folder).items() if not torch.equal(held(tmp_path / "merged")[key], value)]
    assert len(changed) == len(load_file(adapter / "adapter_model.safetensors")) // (3 if "use_dora" in more else 2)


def test_in_bfloat16_the_result_is_as_near_to_the_exact_sum_as_can_be(tmp_path):
    """As PEFT's where it holds the adapter in float32, and nearer where it has it in the base's type."""
    torch.manual_seed(0)
    folder = save(tmp_path / "base", FAMILIES["llama"][0]().bfloat16())
    adapter = adapt(folder, tmp_path / "adapter", dtype=torch.bfloat16)
    factors = {name: value.bfloat16() for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    merge(adapter, tmp_path / "merged")
    results = {
        "ours": held(tmp_path / "merged"),
        "float32": by_peft(folder, adapter, dtype=torch.bfloat16).state_dict(),
        "bfloat16": by_peft(folder, adapter, dtype=torch.bfloat16, autocast_adapter_dtype=False).state_dict(),
    }
    ours = results["ours"]
    off = dict.fromkeys(results, 0.0)
    for key, weight in held(folder).items():
        a, b = (factors.get(f"base_model.model.{key.removesuffix('weight')}lora_{part}.weight") for part in "AB")
        if a is not None:
            exact = weight.double() + 11 / 4 * b.double() @ a.double()
            assert ours[key].dtype == torch.bfloat16
            # Rounded once: half of a step of bfloat16, and the last bits of the float32 sum.
            assert ((ours[key].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all()
            for name, result in results.items():
                off[name] += (result[key].double() - exact).abs().sum().item()
    assert 0 < off["ours"] <= off["float32"]
    assert off["ours"] < 0.8 * off["bfloat16"]


def test_the_files_are_those_of_the_base_and_the_base_is_not_touched(base, tmp_path):
    def digests():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.iterdir()}

    before = digests()
    adapter = adapt(base, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged", dtype="bfloat16")
    assert digests() == before
    shards = {path.name for path in base.glob("*.safetensors")}
    assert len(shards) > 1
    assert {path.name for path in (tmp_path / "merged").glob("*.safetensors")} == shards
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    size = sum(value.nbytes for value in held(tmp_path / "merged").values())
    assert index["metadata"]["total_size"] == size == sum(value.nbytes for value in held(base).values()) // 2
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_no_more_than_a_block_is_read_at_a_time(base, tmp_path, monkeypatch):
    reads = []
    read = streamed_merge.StoredTensor.read
    monkeypatch.setattr(streamed_merge.StoredTensor, "read", lambda self: reads.append(self.name) or read(self))
    forgotten = []
    forget = streamed_merge.stream_weights.__globals__["_Reader"].forget

    def remember(self, *arguments):
        forget(self, *arguments)
        forgotten.append({getattr(own, name).untyped_storage().nbytes() for own, name, *_ in self._places})

    monkeypatch.setattr(streamed_merge.stream_weights.__globals__["_Reader"], "forget", remember)
    merge(adapt(base, tmp_path / "adapter"), tmp_path / "merged")
    # Every weight is read to ask base and adapter, to write, and to ask the merged model.
    assert {reads.count(name) for name in held(base)} == {3}
    # After a block, its matrices take the memory of one number; vectors stay.
    assert len(forgotten) == 2 * (3 + 3)
    assert max(max(sizes) for sizes in forgotten) <= 4 * 32


@pytest.mark.parametrize(("weights", "count"), [((0.7, 0.3), 2), ((-0.5,), 1)])
def test_adapters_are_added_with_their_weights(base, tmp_path, weights, count):
    targets = (["q_proj", "down_proj"], ["q_proj", "v_proj"])
    adapters = [
        adapt(base, tmp_path / f"adapter-{number}", targets=targets[number], seed=number, r=3 + number)
        for number in range(count)
    ]
    result = merge(list(zip(adapters, weights, strict=True)), tmp_path / "merged")
    assert result.largest_difference < 1e-5
    found, changed = held(tmp_path / "merged"), 0
    for key, weight in held(base).items():
        exact = weight.double()
        for number, (adapter, share) in enumerate(zip(adapters, weights, strict=True)):
            factors = load_file(adapter / "adapter_model.safetensors")
            a, b = (factors.get(f"base_model.model.{key.removesuffix('weight')}lora_{part}.weight") for part in "AB")
            if a is not None:
                exact = exact + share * 11 / (3 + number) * b.double() @ a.double()
        assert torch.allclose(found[key].double(), exact, rtol=0, atol=1e-6)
        changed += not torch.equal(found[key], weight)
    assert changed == (9 if count == 2 else 6)


def test_several_adapters_with_more_than_b_a_are_refused_with_every_reason(base, tmp_path):
    plain = adapt(base, tmp_path / "plain")
    dora = adapt(base, tmp_path / "dora", use_dora=True)
    other = adapt(base, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "another"}))
    with pytest.raises(InputError, match="cannot be merged with weights") as refused:
        merge([(plain, 0.5), (dora, 0.3), (other, 0.2)], tmp_path / "merged")
    assert len(refused.value.problems) == 2
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("adapter", "weighted"), [(None, []), ("a", ["b=1"]), *((None, [text]) for text in ("a", "a=x", "=1", "a=0"))]
)
def test_weights_that_cannot_be_read_are_refused(adapter, weighted):
    with pytest.raises(InputError, match="--adapter"):
        weighted_adapters(adapter, weighted)


def test_the_command_line_merges_two(base, tmp_path, gora_here):
    adapt(base, tmp_path / "a")
    adapt(base, tmp_path / "b", seed=2)
    options = ("--adapter", "a=0.7", "--adapter", "b=0.3", "--dtype", "float16", "--output", "merged")
    code, _, err = gora_here("merge", *options, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert {value.dtype for value in held(tmp_path / "merged").values()} == {torch.float16}


def test_a_value_beyond_float16_is_named(base, tmp_path):
    adapter = adapt(base, tmp_path / "adapter", lora_alpha=10**9)
    with pytest.raises(GoraError, match=r"proj\.weight holds values that float16 does not reach"):
        merge(adapter, tmp_path / "merged", dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


@pytest.mark.parametrize("more", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases_are_merged(tmp_path, monkeypatch, more):
    refuse_loading(monkeypatch)
    torch.manual_seed(0)
    model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA))
    folder = save(tmp_path / "base", model)
    adapter = adapt(folder, tmp_path / "adapter", targets=["q_proj"], **more)
    merge(adapter, tmp_path / "merged")
    expected = by_peft(folder, adapter).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    changed = sum(not torch.equal(model.state_dict()[key], found[key]) for key in found if key.endswith("bias"))
    assert changed == {"all": 9, "lora_only": 3, None: 3}[more.get("bias")]


def test_towers_and_processors_of_the_checkpoint_are_in_the_merged_one(tmp_path, monkeypatch):
    refuse_loading(monkeypatch)
    torch.manual_seed(0)
    folder = save(tmp_path / "base", FAMILIES["llama"][0]())
    tower = {"vision_tower.blocks.0.weight": torch.randn(32, 32), "vision_tower.ids": torch.arange(5)}
    save_file({**held(folder), **tower}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text('{"size": 3}')
    merge(adapt(folder, tmp_path / "adapter"), tmp_path / "merged")
    found = held(tmp_path / "merged")
    assert all(torch.equal(found[name], value) for name, value in tower.items())
    assert (tmp_path / "merged" / "preprocessor_config.json").read_text() == '{"size": 3}'


def test_a_disk_that_fills_up_leaves_nothing(base, tmp_path, monkeypatch):
    folded, calls = streamed_merge.folded_pieces, []

    def full(layer, weight):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return folded(layer, weight)

    monkeypatch.setattr(streamed_merge, "folded_pieces", full)
    adapter = adapt(base, tmp_path / "adapter")
    with pytest.raises(GoraError, match="merged cannot be written: No space left"):
        merge(adapter, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def kill_merges(*arguments):
    from tests.helpers import merge_points

    merge_points.main(*arguments)


def test_a_merge_that_is_killed_or_finds_the_disk_full_leaves_nothing_under_the_final_name(base, tmp_path):
    """Killed just before one of its file operations, of every kind; the next one makes the same files."""
    adapter = adapt(base, tmp_path / "adapter")
    (tmp_path / "tries").mkdir()
    done = forks.call(kill_merges, adapter, tmp_path / "tries", 7, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    tries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"operation"')]
    assert len(tries) == 8
    assert {"pwrite", "fsync"} <= {each["operation"] for each in tries}
    for each in tries:
        assert each["ended"] == (1 if each["operation"] == "full" else -signal.SIGKILL)
        assert ("merged" in each["left"]) is each["complete"]
        assert each["again"] == 0
        assert each["same"]
        assert each["names"] == ["merged"]
    assert not tries[0]["complete"]
    assert tries[-1]["left"] == []
    assert "merged cannot be written" in done.stderr


def test_a_model_that_reads_a_weight_out_of_turn_is_loaded_as_a_whole(base, tmp_path, monkeypatch):
    class Passing(tf.LlamaForCausalLM):
        def forward(self, *arguments, **named):
            result = super().forward(*arguments, **named)
            result.logits = result.logits + self.lm_head.weight[:, 0]
            return result

    monkeypatch.setattr(tf.models.llama.modeling_llama, "LlamaForCausalLM", Passing)
    monkeypatch.setattr(tf, "LlamaForCausalLM", Passing)
    loaded, load = [], whole_merge.load_model
    monkeypatch.setattr(whole_merge, "load_model", lambda *a, **b: loaded.append(1) or load(*a, **b))
    monkeypatch.setitem(AutoModelForCausalLM._model_mapping._extra_content, tf.LlamaConfig, Passing)
    adapter = adapt(base, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged")
    assert loaded
    expected = by_peft(base, adapter).state_dict()
    found = held(tmp_path / "merged")
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_model_that_changes_its_weights_while_it_runs_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    config = tf.RwkvConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2, rescale_every=1)
    base = save(tmp_path / "base", tf.RwkvForCausalLM(config))
    adapter = adapt(base, tmp_path / "adapter", targets=["key", "receptance"])
    monkeypatch.setattr(whole_merge, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match="changes its own weights while it runs"):
        merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    document = {
        "preset": "paper",
        "model": {"name": str(base)},
        "data": {"train": {"path": "x"}},
        "adapter": {"method": "lora"},
    }
    recipe = Recipe.model_validate(document)
    with pytest.raises(InputError, match=r"--merge: .* changes its own weights"):
        refuse_unmergeable(recipe, find_model(recipe.model))
