"""The model and the rows of the benchmarks that run gora as a user would: a Llama with random weights, drawn text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "gora" / "assets" / "models" / "tiny-6m"


def make_model(folder: Path, layers: int) -> None:
    """A Llama-3.1-8B with random weights; `layers` below 4 make a small one, to try the script."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = layers < 4
    config = LlamaConfig(
        vocab_size=128256 if not small else 4096,
        hidden_size=4096 if not small else 64,
        intermediate_size=14336 if not small else 128,
        num_hidden_layers=layers,
        num_attention_heads=32 if not small else 4,
        num_key_value_heads=8 if not small else 2,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    fill_vocabulary(folder / "tokenizer.json", config.vocab_size)


def fill_vocabulary(path: Path, size: int) -> None:
    """Give a tokenizer as many tokens as a model has embeddings; no text becomes one of those that are new."""
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in document["added_tokens"])}
    vocabulary.update({f"unused {number}": number for number in range(size) if number not in taken})
    path.write_text(json.dumps(document), encoding="utf-8")


def make_rows(path: Path, tokens: int) -> None:
    """Rows that the tokenizer turns into more than `tokens` tokens, which `data.max_length` cuts."""
    import random

    draw = random.Random(0)
    words = ["sum", "apple", "train", "seven", "price", "because", "total", "hour", "left", "each", "more", "than"]
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(1600):
            text = " ".join(draw.choice(words) for _ in range(2 * tokens))
            stream.write(json.dumps({"prompt": "Tell me more.", "response": text}) + "\n")
