"""Logits of a model for a few fixed texts or pictures, by which two forms of it are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from gora.models.head import head_modules
from gora.models.image_processor import ImageReader, Processor
from gora.models.vision import is_two_towers
from gora.models.zero_shot import image_embeddings

PROBE = (
    "The sum of 17 and 25 is",
    "def median(values):\n    ordered = sorted(values)\n",
    "Once upon a time, in a town by the sea, there lived an old man who",
)
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Shares of the largest logit that rounding cannot explain, by the type of the weights."""


_PICTURES, _PICTURE = 3, (48, 64, 3)


@torch.no_grad()
def probe_logits(model: nn.Module, processor: Processor, texts: Sequence[str] = PROBE) -> Tensor:
    """Logits for a few fixed texts, float32 on the CPU, one row a token; a classifier's one after the other.

    Of a model that sees images, those of a few fixed pictures; of one that compares them with texts, their embeddings.
    """
    model.eval()
    device = next(model.parameters()).device
    if isinstance(processor, ImageReader):
        return _of_pictures(model, processor, device)
    # As in training: some models cannot begin a cache.
    settings: dict[str, Any] = {} if head_modules(model) else {"use_cache": False}
    rows = []
    for text in texts:
        batch = processor(text, return_tensors="pt").to(device)
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"], **settings}
        if model.config.is_encoder_decoder:  # type: ignore[union-attr]
            arguments["labels"] = batch["input_ids"]
        rows.append(model(**arguments).logits[0].float().cpu())
    return torch.cat(rows)


def _of_pictures(model: nn.Module, reader: ImageReader, device: torch.device) -> Tensor:
    from PIL import Image

    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 256, _PICTURE, dtype=np.uint8)) for _ in range(_PICTURES)]
    pixels = torch.stack([reader.pixels(picture) for picture in pictures]).to(device)
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    pixels = pixels.to(inner.dtype)
    found: Tensor = image_embeddings(inner, pixels) if is_two_towers(inner) else model(pixel_values=pixels).logits
    return found.float().cpu()
