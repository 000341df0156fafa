"""Layers are settled on the empty model: what PEFT cannot adapt is left out or refused before a model is loaded."""

import json
from collections import Counter

import pytest
import torch
import transformers as tf
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn.utils import parametrizations

from gora.adapters.dry_wrap import choose_layers
from gora.errors import GoraError, InputError
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.source import Source
from gora.models.targets import find_targets
from gora.models.tied import reasons_against
from gora.recipe.load import load_recipe
from gora.recipe.schema import AdapterSection
from gora.runs.context import RunContext
from gora.stages.merge import merge
from gora.stages.run import run
from scripts.families.small import small_config

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WORDS = ["what", "is", "one", "two", "three", "four", "plus", "it", "equals"]


def deepseek():
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_group": 1, "topk_group": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    return tf.DeepseekV3Config(**SIZES, **latent, **experts, moe_intermediate_size=16, first_k_dense_replace=1)


def qwen3_moe():
    return tf.Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0], head_dim=16
    )


def ernie():
    return tf.Ernie4_5_MoeConfig(
        **SIZES, moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_layer_start_index=1, moe_num_shared_experts=1
    )


def mixtral():
    return tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)


def mamba2():
    return tf.Mamba2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, n_groups=1, state_size=8
    )


def llama4():
    sizes = {**SIZES, "head_dim": 16, "intermediate_size_mlp": 48, "num_local_experts": 2}
    return tf.Llama4TextConfig(**sizes, interleave_moe_layer_step=1)


def choose(config, **settings):
    source = Source(path="small", revision=None, trust_remote_code=False, config=config)
    return choose_layers(AdapterSection(**{"targets": "all-linear", "rank": 2, **settings}), source)


def ends(names):
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("method", ["gora", "lora", "dora", "pissa", "lora-fa", "eva"])
@pytest.mark.parametrize("config", [deepseek, qwen3_moe, ernie])
def test_layers_whose_names_peft_gives_to_experts_are_left_out_in_one_line(config, method):
    chosen = choose(config(), method=method)
    assert {"gate_proj", "up_proj", "down_proj"}.isdisjoint(ends(chosen.layers))
    assert "o_proj" in ends(chosen.layers)
    (line,) = chosen.lines()
    assert line.startswith("left out  ") and "gate_proj x" in line and "down_proj x" in line


@pytest.mark.parametrize("config", [deepseek, qwen3_moe, ernie])
def test_such_a_layer_is_refused_when_it_is_asked_for_by_name(config):
    with pytest.raises(InputError, match=r"layers cannot be adapted\. Name others"):
        choose(config(), method="lora", targets=["o_proj", "down_proj"])


def test_what_peft_refuses_in_mamba_is_left_out_or_refused_by_name():
    assert ends(choose(mamba2()).layers) == {"in_proj"}
    with pytest.raises(InputError, match="incompatible with Mamba"):
        choose(mamba2(), targets=["out_proj"])


@pytest.mark.parametrize("method", ["gora", "lora"])
def test_layers_whose_saved_names_peft_does_not_load_again_are_left_out(method):
    chosen = choose(small_config("laguna"), method=method)
    assert "shared_experts" not in "".join(chosen.layers) and "o_proj" in ends(chosen.layers)
    assert "names that it does not load again" in chosen.lines()[0]
    with pytest.raises(InputError, match="does not load again"):
        choose(small_config("laguna"), method=method, targets=["up_proj"])


def test_a_classifier_with_other_modules_named_like_its_head_is_refused():
    source = Source(
        path="small",
        revision=None,
        trust_remote_code=False,
        config=small_config("modernvbert"),
        head="classification",
    )
    with pytest.raises(InputError, match=r"would train .*vision_model\.head"):
        choose_layers(AdapterSection(targets="attention", rank=2, method="lora"), source)


@pytest.mark.parametrize("family", ["zamba", "zamba2"])
@pytest.mark.parametrize("method", ["gora", "lora", "pissa"])
def test_layers_of_a_block_that_stands_at_several_depths_are_left_out(family, method):
    chosen = choose(small_config(family), method=method)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(small_config(family))
    users = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    assert all(users[id(model.get_submodule(name).weight)] == 1 for name in chosen.layers)
    assert {"in_proj", "linear"} <= ends(chosen.layers)
    assert "used in several places of the model" in chosen.lines()[0]
    with pytest.raises(InputError, match="used in several places of the model"):
        choose(small_config(family), method=method, targets="attention")


def test_full_training_moves_a_weight_of_several_places_once():
    assert "q_proj" in ends(choose(small_config("zamba"), method="full", targets="attention").layers)


@pytest.mark.parametrize(("targets", "method"), [(["lm_head", "q_proj"], "lora"), (["lm_head"], "gora")])
def test_a_head_tied_to_the_embedding_is_no_target(targets, method):
    with pytest.raises(InputError, match="lm_head x1: their weights are also the embeddings"):
        choose(tf.LlamaConfig(**SIZES, tie_word_embeddings=True), targets=targets, method=method)


class Odd(nn.Module):
    """Layers that share, in each of the ways there are."""

    def __init__(self):
        super().__init__()
        self.alone, self.twice, self.owner, self.user = (nn.Linear(4, 4) for _ in range(4))
        self.again = self.twice
        self.user.weight = self.owner.weight
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.block = self.same_block = nn.ModuleDict({"inner": nn.Linear(4, 4)})
        self.table, self.head = nn.Embedding(4, 4), nn.Linear(4, 4)
        self.head.weight = self.table.weight


def test_each_way_of_sharing_a_weight_has_its_reason():
    model = Odd()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = reasons_against(model, layers)
    assert set(layers) - set(found) == {"alone", "block.inner"}
    assert {name for name, why in found.items() if "several places" in why} == {"twice", "owner", "user"}
    assert "computed from other parameters" in found["normed"]
    assert "embeddings" in found["head"]


def test_adalora_may_adapt_what_lora_may_not():
    assert "down_proj" in ends(choose(deepseek(), method="adalora").layers)


def test_routers_that_return_more_than_a_tensor_are_left_out():
    chosen = choose(llama4())
    assert "router" not in ends(chosen.layers)
    assert "router x2" in chosen.lines()[0]
    with pytest.raises(InputError, match="return more than one tensor"):
        choose(llama4(), targets=["router"])


@pytest.mark.parametrize("config", [mixtral, deepseek, qwen3_moe])
def test_the_share_of_weights_in_fused_experts_is_told(config):
    chosen = choose(config(), targets="attention")
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config())
    experts = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    share = experts / sum(value.numel() for value in model.parameters())
    assert chosen.unreached == pytest.approx(share, abs=0.02)
    assert "experts.gate_up_proj" in chosen.warning()


def test_a_model_of_linear_layers_gets_no_line(llama):
    chosen = choose(llama.config)
    assert (chosen.lines(), chosen.warning()) == ([], None)
    assert list(chosen.layers) == list(find_targets(llama, "all-linear"))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_every_method_wraps_exactly_the_chosen_layers_of_a_plain_model(name, llama):
    assert list(choose(llama.config, method=name).layers) == list(find_targets(llama, "all-linear"))


def test_wrapping_itself_refuses_what_peft_has_made_of_the_names():
    model = tf.DeepseekV3ForCausalLM(deepseek())
    settings = AdapterSettings(rank=2, alpha=4, dropout=0.0)
    names = ("model.layers.0.mlp.down_proj",)
    wrapping = Wrapping(targets={name: model.get_submodule(name) for name in names}, settings=settings)
    with pytest.raises(GoraError, match="PEFT adapts fused experts"):
        METHODS["lora"].wrap(model, wrapping)


# --- the whole chain --------------------------------------------------------------------------------------------------


def written(folder, model, **sections):
    model.save_pretrained(folder / "model")
    words = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder / "model")
    pairs = [(one, two) for one in WORDS[2:6] for two in WORDS[2:6]]
    rows = [{"prompt": f"what is {one} plus {two}", "response": f"it equals {two}"} for one, two in pairs]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "model": {"name": str(folder / "model")},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "max_length": 64},
        "adapter": {"targets": "all-linear", "rank": 2, "alpha": 4, **sections},
        "gora": {"steps": 2},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "log_steps": 1},
        "output": str(folder / "run"),
    }
    (folder / "recipe.json").write_text(json.dumps(document))
    return load_recipe(str(folder / "recipe.json")).recipe


@pytest.mark.parametrize("method", ["gora", "lora"])
def test_a_mixture_trains_and_its_adapter_reloads_with_peft_onto_the_printed_layers(method, tmp_path):
    torch.manual_seed(0)
    recipe = written(tmp_path, tf.DeepseekV3ForCausalLM(deepseek()), method=method)
    trained = run(recipe)
    chosen = choose_layers(recipe.adapter, RunContext.alone(recipe).source)
    base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    wrapped = PeftModel.from_pretrained(base, trained.adapter)
    found = {
        name.removeprefix("base_model.model.").rpartition(".lora_A")[0]
        for name, _ in wrapped.named_parameters()
        if ".lora_A." in name
    }
    assert found == set(chosen.layers)


def test_a_refusal_comes_before_the_model_is_loaded(tmp_path, monkeypatch):
    recipe = written(tmp_path, tf.DeepseekV3ForCausalLM(deepseek()), targets=["down_proj"])
    loaded = []
    monkeypatch.setattr("gora.runs.base_model.load_model", lambda *args, **kwargs: loaded.append(1))
    with pytest.raises(InputError, match="cannot be adapted"):
        run(recipe)
    assert not loaded
    assert not (tmp_path / "run" / "plan.safetensors").exists()


@pytest.mark.parametrize("method", ["gora", "lora"])
def test_a_model_with_a_block_at_several_depths_is_trained_beside_it_and_merged(method, tmp_path):
    torch.manual_seed(0)
    config = small_config("zamba")
    config.vocab_size = 32
    recipe = written(tmp_path, tf.AutoModelForCausalLM.from_config(config), method=method)
    merged = merge(run(recipe).adapter, tmp_path / "merged").path
    before, after = (tf.AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "model", merged))
    changed = {name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    assert changed and not any("shared_transf" in name for name in changed)


@pytest.mark.parametrize("family", ["mamba", "jamba", "longcat_flash"])
def test_layers_whose_weight_is_used_without_a_call_are_left_out_once_the_model_is_loaded(family, tmp_path, capsys):
    torch.manual_seed(0)
    config = small_config(family)
    config.vocab_size = 32
    recipe = written(tmp_path, tf.AutoModelForCausalLM.from_config(config), method="gora")
    adapter = run(recipe).adapter
    told = capsys.readouterr().out
    assert "the model uses their weights without calling them" in told
    base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    wrapped = PeftModel.from_pretrained(base, adapter)
    ids = torch.tensor([[2, 5, 6, 7, 8, 9, 4, 5, 10, 3]])
    before = wrapped(input_ids=ids, use_cache=False).logits
    for name, value in wrapped.named_parameters():
        # A layer of which nothing is heard would not change the answer, whatever its adapter says.
        if ".lora_B." in name:
            kept = value.data.clone()
            value.data += 1.0
            assert not torch.equal(before, wrapped(input_ids=ids, use_cache=False).logits), name
            value.data = kept


def test_one_that_is_asked_for_by_name_is_refused_before_the_gradient_pass(tmp_path):
    torch.manual_seed(0)
    config = small_config("mamba")
    config.vocab_size = 32
    recipe = written(tmp_path, tf.AutoModelForCausalLM.from_config(config), targets=["dt_proj", "in_proj"])
    with pytest.raises(InputError, match="dt_proj x2: the model uses their weights without calling them"):
        run(recipe)
    assert not (tmp_path / "run" / "plan.safetensors").exists()
    assert not (tmp_path / "run" / "gradients.partial").exists()


def test_a_model_that_writes_into_the_output_of_a_layer_trains(tmp_path):
    config = tf.FalconConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, bos_token_id=2, eos_token_id=3
    )
    recipe = written(tmp_path, tf.FalconForCausalLM(config))
    assert (run(recipe).adapter / "adapter_model.safetensors").exists()
