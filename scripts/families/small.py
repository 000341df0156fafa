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
LAYERS, LARGEST = 2, 3_000_000
# Names of settings, as expressions, and what they become; the first that matches counts. Others stay.
_SIZES: list[tuple[str, int]] = [
    (r".*vocab_size$|^vocab_size.*", 64),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length|max_target_positions", 128),
    (r"n_group|topk_group|n_groups|mamba_n_groups", 1),
    (r".*(num|n)_key_value_heads|.*kv_heads|num_query_groups", 2),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|num_experts_per_token|moe_k|top_k|expert_top_k", 1),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|num_routed_experts|ffn_num_experts", 4),
    (r"(q|kv|qk|v)_?.*lora_rank|q_lora_rank|kv_lora_rank|o_lora_rank", 8),
    (r".*layers?$|.*_layer|.*blocks?$|num_layers|num_hidden_layers|encoder_layers|decoder_layers|n_layer", LAYERS),
    (r".*(attention|encoder|decoder|num)_?heads|n_heads?|.*num_heads|.*n_head", 2),
    (r"qk_rope_head_dim|qk_nope_head_dim|.*head_dim|d_kv|.*head_size|v_head_dim|.*_per_head", 16),
    (r".*intermediate_size|.*ffn_dim|d_ff|.*ffn_hidden_size|n_inner|dim_ff|expand_dim|ffn_size|.*inner_dim", 48),
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_size|d_embed|word_embed_proj_dim", 32),
    (r".*hidden_size|.*_dim|.*width|lru_width|attention_hidden_size", 32),
    (r".*(state_size|d_state|conv_kernel|time_step_rank)", 8),
    (r"image_size", 28),
    (r"patch_size", 14),
]
_KEEP = re.compile(r".*(rotary|rope|partial|factor|ratio|_ids?|token|conv|activation|first_k|use_|loss|layer_norm|eps)")


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
    # Sizes that do not fit each other show in a forward pass: that would be no fault of what comes after.
    tokens = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 10, 3]])
    with torch.no_grad():
        model(input_ids=tokens, labels=torch.tensor([0, 1]) if kind == "encoder" else tokens)
    model.save_pretrained(folder)
    words = [*SPECIAL, *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    pairs = [(one, two) for one in WORDS[2:6] for two in WORDS[2:6]]
    rows: list[dict[str, Any]] = [
        {"prompt": f"what is {one} plus {two}", "response": f"it equals {two} plus {one}"} for one, two in pairs
    ]
    if kind == "encoder":
        rows = [{**row, "response": ("good", "bad")[number % 2]} for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return size


def small_config(family: str) -> PreTrainedConfig:
    """The default configuration of a family, with small sizes, in its parts too."""
    kind: Any = CONFIG_MAPPING[family]
    return kind(**_shrunk(kind().to_dict()))


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            small[name] = _shrunk(value) if name.endswith("config") or name in ("encoder", "decoder") else value
        elif name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types") and value:
            small[name] = [value[0], value[-1]][:LAYERS]
        elif name == "dtype":
            small[name] = "float32"
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            small[name] = _size(name, value)
        elif name.endswith("token_id") and isinstance(value, int):
            small[name] = value
        else:
            small[name] = value
    for name, number in (("pad_token_id", 0), ("bos_token_id", 2), ("eos_token_id", 3), ("decoder_start_token_id", 0)):
        small[name] = number
    return {name: value for name, value in small.items() if name not in ("model_type", "transformers_version")}


def _size(name: str, value: int) -> int:
    if name.endswith("token_id") or name.endswith("token_index"):
        return value if value < 60 else 60
    for expression, size in _SIZES:
        if re.fullmatch(expression, name) and (size == 64 or "head_dim" in name or not _KEEP.match(name)):
            return min(size, value)
    return value
