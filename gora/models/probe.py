"""Logits of a model for a few fixed texts, by which two forms of it are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gora.models.head import head_modules

PROBE = (
    "The sum of 17 and 25 is",
    "def median(values):\n    ordered = sorted(values)\n",
    "Once upon a time, in a town by the sea, there lived an old man who",
)
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Shares of the largest logit that rounding cannot explain, by the type of the weights."""


@torch.no_grad()
def probe_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = PROBE) -> Tensor:
    """Logits for a few fixed texts, float32 on the CPU, one row a token; a classifier's one after the other."""
    model.eval()
    device = next(model.parameters()).device
    # As in training: some models cannot begin a cache.
    settings: dict[str, Any] = {} if head_modules(model) else {"use_cache": False}
    rows = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt").to(device)
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"], **settings}
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            arguments["labels"] = batch["input_ids"]
        rows.append(model(**arguments).logits[0].float().cpu())
    return torch.cat(rows)
