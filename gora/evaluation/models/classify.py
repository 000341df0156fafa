"""What a classifier says of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.data import IGNORED, Examples, LabelCollator, LabelledText, TextEncoder, padding_id
from gora.errors import InputError
from gora.models.encoders import knows_token_types, longest_input
from gora.models.head import settle_padding
from gora.models.new_tokens import embedding_rows
from gora.models.positions import real_limit

_UNLIMITED = 2**31 - 1


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[int]:
    """The number of the likeliest label of each text; arguments and errors as in `class_logits`."""
    logits = class_logits(model, tokenizer, texts, pairs, batch_size=batch_size, max_length=max_length)
    return logits.argmax(dim=1).tolist()


@torch.no_grad()
def class_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Tensor:
    """Logits of the labels for each text or pair of texts, tokenized as in training.

    Args:
        model: a model for sequence classification, with an adapter or without, on the device that computes. It is
            asked in evaluation mode, and left in the mode that it was in.
        tokenizer: its tokenizer.
        texts: the texts, or the first ones of pairs.
        pairs: the second texts, as many; None where a text stands alone.
        batch_size: texts in one forward pass.
        max_length: longer inputs are cut to this many tokens; None is what tokenizer and model take.

    Returns:
        (texts, labels), float32 on the CPU, in the order of the texts.

    Raises:
        InputError: there are not as many second texts as first ones, or the tokenizer has no padding token.
    """
    limits = [real_limit(tokenizer.model_max_length), longest_input(model)]
    longest = min((limit for limit in limits if limit is not None), default=_UNLIMITED)
    encoded = _encoded(tokenizer, texts, pairs, max_length or longest)
    pad = padding_id(tokenizer, embedding_rows(model))
    if pad is None:
        raise InputError("The tokenizer has no padding token, without which texts cannot share a batch.")
    settle_padding(model, pad)
    collator = LabelCollator(pad, knows_token_types(model.config))
    # Texts of similar length share a batch: less padding, and each row stays what it is.
    order = sorted(range(len(encoded)), key=encoded.lengths.__getitem__)
    logits = torch.empty(len(texts), int(model.config.num_labels or 0))
    was_training = model.training
    model.eval()
    try:
        for rows in _parts(order, batch_size):
            batch = collator([encoded[index] for index in rows])
            inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
            logits[rows] = model(**inputs).logits.float().cpu()
    finally:
        model.train(was_training)
    return logits


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> Examples:
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"There are {len(texts):,} first texts of pairs and {len(pairs):,} second ones.")
    seconds: Sequence[str | None] = [None] * len(texts) if pairs is None else pairs
    rows = [LabelledText(text, second, IGNORED) for text, second in zip(texts, seconds, strict=True)]
    encoded = [one for one in TextEncoder(tokenizer, max_length)(rows) if one is not None]
    return Examples(encoded, [""] * len(encoded))


def _parts(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
