"""Small mixtures of experts, and a run on one of them."""

import json
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from gora.recipe.load import load_recipe
from tests.helpers.checkpoints import SIZES as CHECKPOINT_SIZES

SIZES = {**CHECKPOINT_SIZES, "hidden_size": 16, "intermediate_size": 24}
WORDS = ["what", "is", "one", "two", "three", "four", "plus", "it", "equals"]


def mixtral():
    """Experts as (experts, out, in) in every block."""
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def qwen3_moe():
    """A block without experts before one with them."""
    own = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0]}
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SIZES, **own, head_dim=8))


def gpt_oss():
    """Experts as (experts, in, out), with biases, in a module that says so."""
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 64}
    positions = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return tf.GptOssForCausalLM(tf.GptOssConfig(**SIZES, **own, **positions))


def llama4():
    """Experts as (experts, in, out) in a module that does not say so."""
    own = {"head_dim": 8, "intermediate_size_mlp": 24, "num_local_experts": 2, "interleave_moe_layer_step": 1}
    return tf.Llama4ForCausalLM(tf.Llama4TextConfig(**SIZES, **own))


def jetmoe():
    """Experts in modules of their own, one parameter in each, in attention as well."""
    own = {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8}
    sizes = {key: value for key, value in SIZES.items() if key != "num_attention_heads"}
    return tf.JetMoeForCausalLM(tf.JetMoeConfig(**sizes, **own))


def made(build):
    """A mixture with weights that are large enough for experts to matter, the same at every call."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 3:
                value.normal_(std=0.3)
    return model


def recipe_on(folder: Path, model, *settings, **adapter):
    """Save a model beside rows and a recipe that adapts its attention and its experts, and read the recipe."""
    if not (folder / "model").exists():
        model.save_pretrained(folder / "model")
        _tokenizer().save_pretrained(folder / "model")
    pairs = [(one, two) for one in WORDS[2:6] for two in WORDS[2:6]]
    rows = [{"prompt": f"what is {one} plus {two}", "response": f"it equals {two} plus {one}"} for one, two in pairs]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "preset": "paper",
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "max_length": 64},
        "adapter": {"targets": "attention", "experts": True, "rank": 2, "alpha": 4, **adapter},
        "gora": {"steps": 4, "rank_min": 1},
        "train": {"max_steps": 3, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "log_steps": 1},
        "output": str(folder / "run"),
    }
    (folder / "recipe.json").write_text(json.dumps(document))
    return load_recipe(str(folder / "recipe.json"), list(settings)).recipe


def _tokenizer():
    words = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
    words += [f"w{number}" for number in range(SIZES["vocab_size"] - len(words))]
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=whole, **names)
