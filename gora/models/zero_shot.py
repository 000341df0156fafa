"""A classifier of texts: each class is the mean embedding of sentences about it, which stays as it is.

The model keeps its layers and their names, so that adapters and merged weights are those of an ordinary CLIP or SigLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ImageClassifierOutput

from gora.errors import InputError
from gora.models.positions import positions_of

_EMBEDDINGS = "class_embeddings"
_TEXTS = 256


def hold_scalars(model: nn.Module) -> None:
    """Keep single numbers of a frozen model, such as CLIP's scale, as buffers, which are saved and loaded as before.

    DeepSpeed cannot send them as parameters.
    """
    for name, value in list(model.named_parameters(recurse=False)):
        if value.dim() == 0:
            delattr(model, name)
            model.register_buffer(name, value.detach())


def sentences_of(name: str, prompts: Sequence[str]) -> list[str]:
    """The texts about a class: `{class}` is its name, whose underscores are read as spaces."""
    return [prompt.replace("{class}", name.replace("_", " ")) for prompt in prompts]


def use_classes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], prompts: Sequence[str]
) -> None:
    """Have a CLIP or SigLIP predict classes from images alone.

    Its `forward` then takes `pixel_values` and, it may be, `labels`, and returns `logits` (images x classes): cosine
    similarities with the classes, scaled as the model scales them, and their mean cross-entropy as `loss`.

    Args:
        model: loaded; its text tower is asked once, here.
        tokenizer: the model's.
        names: of the classes, in the order of their numbers.
        prompts: `data.class_prompts`.

    Raises:
        InputError: a sentence is longer than the model reads.
    """
    embeddings = class_embeddings(model, tokenizer, names, prompts)
    model.register_buffer(_EMBEDDINGS, embeddings, persistent=False)
    model.forward = MethodType(_forward, model)  # type: ignore[method-assign]


@torch.no_grad()
def class_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], prompts: Sequence[str]
) -> Tensor:
    """The mean of the embeddings of the sentences about each class, all of length one (classes x width).

    Raises:
        InputError: a sentence is longer than the model reads.
    """
    texts = [text for name in names for text in sentences_of(name, prompts)]
    longest = positions_of(model.config.text_config) or tokenizer.model_max_length
    # SigLIP was trained on texts that are filled up to the longest, and has no mask.
    filled = model.config.model_type.startswith("siglip")
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(texts), _TEXTS):
        some = texts[start : start + _TEXTS]
        batch = tokenizer(
            some, return_tensors="pt", padding="max_length" if filled else True, max_length=longest, verbose=False
        )
        _refuse_long(some, batch["input_ids"], longest)
        inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask") if key in batch}
        found.append(normalize(_pooled(model.get_text_features(**inputs)), dim=-1))  # type: ignore[operator]
    of_classes = torch.cat(found).view(len(names), len(prompts), -1)
    return normalize(of_classes.mean(dim=1), dim=-1)


def image_embeddings(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Embeddings of images, of length one (images x width)."""
    return normalize(_pooled(model.get_image_features(pixel_values=pixel_values)), dim=-1)  # type: ignore[operator]


def _forward(
    self: PreTrainedModel, pixel_values: Tensor | None = None, labels: Tensor | None = None, **_: Any
) -> ImageClassifierOutput:
    """In place of the model's `forward`."""
    assert pixel_values is not None
    images = image_embeddings(self, pixel_values)
    scale: Any = self.logit_scale
    logits = images @ self.class_embeddings.to(images).T * scale.exp()  # type: ignore[operator, union-attr]
    if (bias := getattr(self, "logit_bias", None)) is not None:
        logits = logits + bias
    loss = None if labels is None else cross_entropy(logits.float(), labels)
    return ImageClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]


def _pooled(output: Any) -> Tensor:
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return pooled


def _refuse_long(texts: Sequence[str], ids: Tensor, longest: int) -> None:
    if ids.shape[1] > longest:
        text = max(texts, key=len)
        raise InputError(
            f"data.class_prompts: {text[:80]!r} has more than the {longest} tokens that the model reads. Shorten the "
            "prompts, or the names in data.choices."
        )
