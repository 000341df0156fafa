"""A small model with random weights of any family that transformers knows, made by shrinking its configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import modeling_auto as auto

KINDS = {
    "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    "encoder-decoder": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
    "encoder": (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, AutoModelForSequenceClassification),
}
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
WORDS = "what is one two three four plus it equals the sum of good bad user assistant".split()  # noqa: SIM905
TOKENIZER = "tokenizer"
"""A folder of its own: beside a configuration, transformers makes the family's own kind of tokenizer of its files."""
LAYERS, LARGEST = 2, 12_000_000
# Names of settings, as expressions, and what they become; the first that matches counts. Others stay.
_SIZES: list[tuple[str, int]] = [
    (r".*vocab_size.*|.*group_vocab|ngram_vocab_size_base", 64),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length|max_target_positions", 128),
    (r"n_group|topk_group|n_groups|mamba_n_groups|num_expert_group", 1),
    (r".*(num|n)_key_value_heads|.*kv_heads|num_query_groups", 2),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|num_experts_per_token|moe_k|top_k|expert_top_k", 1),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|num_routed_experts|ffn_num_experts|zero_expert_num", 4),
    (r"(q|kv|qk|v)_?.*lora_rank|q_lora_rank|kv_lora_rank|o_lora_rank", 8),
    (r"num_kv_shared_layers", 0),
    (r".*layers?$|.*_layer|.*blocks?$|num_layers|num_hidden_layers|encoder_layers|decoder_layers|n_layer", LAYERS),
    (r"mamba_d_head|mamba_head_?dim|qk_head_dim", 32),
    (r".*(attention|encoder|decoder|num)_?heads|n_heads?|.*num_heads|.*n_heads?", 2),
    (r"qk_rope_head_dim|qk_nope_head_dim|.*head_dim|d_kv|.*head_size|v_head_dim|.*_per_head|d_head", 16),
    (r"rotary_dim", 8),
    (
        r".*intermediate_size|.*ffn_dim|d_ff|.*ffn_hidden_size|n_inner|dim_ff|expand_dim|ffn_size|.*inner_dim|d_inner",
        48,
    ),
    (r"hidden_size.*|d_model|n_embd|dim|emb_dim|embed_dim|.*embedding_size|d_embed|word_embed_proj_dim|d_latents", 32),
    (r".*hidden_size|.*_dim|.*width|lru_width|attention_hidden_size|intra_bottleneck_size|hc_lowrank", 32),
    (r".*(state_size|d_state|conv_kernel|time_step_rank)|shape_size|num_latents", 8),
    (r"base_channels", 32),
    (r"coordinate_size|num_filters", 4),
    (r"attn_layer_period|layer_group_size", 2),
    (r"attn_layer_offset", 1),
    (r"image_size", 28),
    (r"patch_size", 14),
]
# What stands for "as the number of heads", "as wide as they make it" and so on, where the class does not say so.
_UNSET = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "vocab_size": 64,
}
_KEEP = re.compile(r".*(rope|partial|factor|ratio|_ids?|token|conv|activation|first_k|use_|loss|layer_norm|eps)")
_QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_SHARED = ["linear_attention", "hybrid", "hybrid"]
# Settings of single families that follow no rule.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_PARTICULAR: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note": {"audio_config": {"adapter_input_size": 32}, "text_config": {"head_dim": 32}},
    "dots3_note_text": {"head_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7}},
    "falcon_h1": {"mamba_d_ssm": 16},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"moe_topk": 2},
    "mamba2": {"num_heads": 2, "head_dim": 32},
    "mimo_v2_flash": {"num_attention_heads": 4},
    "mistral4": {"head_dim": 32},
    "qwen4_exp_text": _QSA,
    "qwen4_exp": {"text_config": _QSA},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": _SHARED,
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": _SHARED,
        "hybrid_layer_ids": [1, 2],
        "n_mamba_heads": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
    },
}


def build(kind: str, family: str, folder: Path) -> int:
    """Write a model, its tokenizer and its rows; returns its parameters.

    Raises:
        Exception: of whatever kind transformers has for a configuration that cannot be shrunk so.
    """
    torch.manual_seed(0)
    config = small_config(family)
    with torch.device("meta"):
        size = sum(value.numel() for value in KINDS[kind][1].from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"still {size:,} parameters when shrunk")
    model = KINDS[kind][1].from_config(config).eval()
    whole = _whole(config, model)
    # Sizes that do not fit each other show in a forward pass: that would be no fault of what comes after.
    tokens = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 10, 3]])
    with torch.no_grad():
        told: dict[str, Any] = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
        model(input_ids=tokens, **told, **({} if kind == "encoder" else {"use_cache": False}))
    whole.save_pretrained(folder)
    (folder / TOKENIZER).mkdir()
    words = [*SPECIAL, *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder / TOKENIZER)
    pairs = [(one, two) for one in WORDS[2:6] for two in WORDS[2:6]]
    rows: list[dict[str, Any]] = [
        {"prompt": f"what is {one} plus {two}", "response": f"it equals {two} plus {one}"} for one, two in pairs
    ]
    if kind == "encoder":
        rows = [{**row, "response": ("good", "bad")[number % 2]} for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return size


def _whole(config: PreTrainedConfig, model: Any) -> Any:
    """What a checkpoint of the family holds: the model, or that with towers of which it is the part for text."""
    if type(model.config) is type(config):
        return model
    return AutoModelForMultimodalLM.from_config(config)


def small_config(family: str) -> PreTrainedConfig:
    """The default configuration of a family, with small sizes, in its parts too."""
    kind: Any = CONFIG_MAPPING[family]
    values = _with(_shrunk(kind().to_dict()), _PARTICULAR.get(family, {}))
    return kind(**{name: value for name, value in values.items() if name != "model_type"})


def _with(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _with(values[name], other) if name.endswith("_config") else other for name, other in others.items()}
    return values | nested


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    layers, kept = _layers(values)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in kept:
            small[name] = kept[name]
        elif isinstance(value, dict):
            small[name] = _shrunk(value) if "model_type" in value else value
        elif name == "dtype":
            small[name] = "float32"
        elif value is None:
            small[name] = _UNSET.get(name)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            small[name] = layers if value == _number_of_layers(values) and "layer" in name else _size(name, value)
        else:
            small[name] = value
    if values.get("per_layer_config"):
        small["per_layer_config"] = {}
    for name, number in (("pad_token_id", 0), ("bos_token_id", 2), ("eos_token_id", 3), ("decoder_start_token_id", 0)):
        small[name] = number
    return {name: value for name, value in small.items() if name != "transformers_version"}


def _layers(values: dict[str, Any]) -> tuple[int, dict[str, list[Any]]]:
    """How many layers are kept, so that each kind of layer is there, and the lists that have an entry for each."""
    before = _number_of_layers(values)
    lists = {name: value for name, value in values.items() if isinstance(value, list) and before == len(value) > 1}
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items() if isinstance(value[0], str)}
    layers = max([LAYERS, *map(len, kinds.values())])
    kept = {}
    for name, value in lists.items():
        some = kinds.get(name) or [value[0], value[-1]]
        some = [_size(name, each) if type(each) is int and each > 1 else each for each in some]
        kept[name] = some + some[-1:] * (layers - len(some))
    return layers, kept


def _number_of_layers(values: dict[str, Any]) -> int | None:
    by_name = (values.get(name) for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"))
    told = next((value for value in by_name if value), None)
    return told or max(
        (len(values[name]) for name in ("layers_block_type", "layer_types") if values.get(name)), default=None
    )


def _size(name: str, value: int) -> int:
    if name.endswith("token_id") or name.endswith("token_index"):
        return value if value < 60 else 60
    for expression, size in _SIZES:
        if re.fullmatch(expression, name) and (
            size == 64 or "head_dim" in name or name.startswith("num_experts") or not _KEEP.match(name)
        ):
            return min(size, value)
    return value
