"""Tiny encoders with random weights and tokenizers of their own, and rows for them."""

import json

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

GOOD = ("lovely", "charming", "bright", "warm", "clever", "moving")
BAD = ("dull", "clumsy", "grey", "cold", "silly", "tired")
FRAMES = (
    "a {} film from start to end",
    "the {} plot stays with you",
    "what a {} evening",
    "its {} people talk and talk about the sea",
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


def sentences():
    """Text and label of all rows: 48, as many good as bad ones."""
    return [
        (frame.format(word), int(word in GOOD))
        for frame in FRAMES
        for pair in zip(GOOD, BAD, strict=True)
        for word in pair
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tokenizer(*, separators=1, token_types=True):
    """Words as tokens; pairs as BERT writes them, or as RoBERTa does with two separators and no types."""
    words = sorted({word for text, _ in sentences() for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    second = ":1" if token_types else ""
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A" + " [SEP]" * separators + f" $B{second} [SEP]{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * token_types
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=names,
        model_max_length=512,
    )


def _bert():
    return BertModel(BertConfig(vocab_size=64, **SIZES)), tokenizer()


def _roberta():
    config = RobertaConfig(vocab_size=64, type_vocab_size=1, pad_token_id=0, **SIZES)
    return RobertaModel(config, add_pooling_layer=False), tokenizer(separators=2, token_types=False)


def _distilbert():
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40}
    config = DistilBertConfig(vocab_size=64, initializer_range=0.2, **sizes)
    return DistilBertModel(config), tokenizer(token_types=False)


def _llama():
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, tie_word_embeddings=True, **SIZES)
    return LlamaForCausalLM(config), tokenizer(token_types=False)


KINDS = {"bert": _bert, "roberta": _roberta, "distilbert": _distilbert, "llama": _llama}


def write_model(path, kind="bert"):
    """A folder with a pre-trained base, without a classification head."""
    torch.manual_seed(0)
    model, its_tokenizer = KINDS[kind]()
    model.save_pretrained(path)
    its_tokenizer.save_pretrained(path)
    return path


def opposite_rows(folder):
    """All sentences with the other label, in `opposite.jsonl`: what learns the rows gets these wrong."""
    write_rows(folder / "opposite.jsonl", [{"sentence": text, "label": 1 - label} for text, label in sentences()])
    return folder / "opposite.jsonl"


def write_recipe(folder, kind="bert"):
    """A recipe for the rows, with the rows and the model beside it; returns its path."""
    rows = [{"sentence": text, "label": label} for text, label in sentences()]
    write_rows(folder / "train.jsonl", rows[:38])
    write_rows(folder / "eval.jsonl", rows[38:])
    write_model(folder / kind, kind)
    recipe = folder / f"{kind}.yaml"
    recipe.write_text(
        f"""
preset: paper
model: {{name: {folder / kind}, head: classification}}
data:
  train: {{path: {folder / "train.jsonl"}}}
  eval: {{path: {folder / "eval.jsonl"}}}
  prompt: sentence
  response: label
  choices: [bad, good]
  max_length: 24
  packing: none
adapter: {{targets: all-linear}}
gora: {{steps: 6}}
train: {{epochs: 16, batch_size: 8, micro_batch_size: 4, learning_rate: 3.0e-4, log_steps: 1}}
output: {folder / "run"}
"""
    )
    return recipe
