"""Tiny checkpoints with tokenizers of whole words, rows and recipes for them."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gora.recipe import load_recipe

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
WORDS = ("what", "is", "one", "two", "three", "four", "plus", "it", "equals", "the", "sum", "of", "user", "assistant")
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
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456789\n"


def save_words(folder, words=WORDS, *, marks=(), **names):
    """A tokenizer of whole words; `marks` are special tokens behind them, `names` say which token is what."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    named = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**named, **names})
    if marks:
        tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_llama(folder, **config):
    """A model of two blocks with random weights, and its words; settings add to `SIZES` or replace."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, **config})).save_pretrained(folder)
    save_words(folder)
    return folder


def save_rows(path, *, answer="it equals {b} plus {a}"):
    """Sixteen prompts and responses made of those words."""
    numbers = WORDS[2:6]
    rows = [{"prompt": f"what is {a} plus {b}", "response": answer.format(a=a, b=b)} for a in numbers for b in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_for(base, rows, output, *settings, **sections):
    """A recipe of a few steps; sections add to it, and settings are written as on the command line."""
    document = {
        "preset": "paper",
        "model": {"name": str(base), "dtype": "float32"},
        "data": {"train": {"path": str(rows)}, "max_length": 64},
        "adapter": {"method": "lora", "targets": "attention", "rank": 2, "alpha": 4},
        "gora": {"steps": 2},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "precision": "fp32"},
        "output": str(output),
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    path = output.parent / f"{output.name}.json"
    path.write_text(json.dumps(document))
    return load_recipe(str(path), list(settings)).recipe
