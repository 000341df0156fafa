"""Examples become a batch of tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from gora.data.encode import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def padding_id(tokenizer: "PreTrainedTokenizerBase", embeddings: int | None = None) -> int:
    """The id to pad inputs with: the tokenizer's padding token, or its end-of-sequence token.

    The latter is taken where there is no padding token, or one that the model has no embedding for. Which of them it is
    makes no difference to a result: padded positions are masked out and have no label.

    Args:
        tokenizer: the tokenizer.
        embeddings: how many tokens the model has embeddings for; None where that has been settled before.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    beyond = pad is not None and embeddings is not None and pad >= embeddings and end is not None
    return end if pad is None or beyond else pad


@dataclass(frozen=True)
class Collator:
    """Pads the examples of a micro-batch on the right, to the longest of them and no further unless asked to.

    Args:
        pad_token_id: fills `input_ids`; see `padding_id`.
        encoder_decoder: labels then have a length of their own; otherwise they are as long as the inputs.
    """

    pad_token_id: int
    encoder_decoder: bool = False

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", encoder_decoder: bool) -> "Collator":
        """The collator for a tokenizer's examples."""
        return cls(padding_id(tokenizer), encoder_decoder)

    def supervised(self, labels: torch.Tensor) -> torch.Tensor:
        """How many tokens of a batch have a loss, a scalar; a causal model predicts none at the first position."""
        return ((labels if self.encoder_decoder else labels[:, 1:]) != IGNORED).sum()

    def __call__(self, examples: Sequence[dict[str, list[int]]], width: int | None = None) -> dict[str, torch.Tensor]:
        """Make a batch of examples that hold `input_ids` and `labels`.

        Args:
            examples: the examples.
            width: pad the inputs to this length; None is the longest of them.

        Returns:
            int64 tensors `input_ids` and `attention_mask` (batch x longest input, mask 1 on tokens and 0 on padding)
            and `labels` (batch x longest label list for an encoder-decoder, else the shape of the inputs), whose
            padding is -100.
        """
        inputs = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        input_width = width or _longest(inputs)
        label_width = _longest(labels) if self.encoder_decoder else input_width
        return {
            "input_ids": _padded(inputs, input_width, self.pad_token_id),
            "attention_mask": _padded([[1] * len(ids) for ids in inputs], input_width, 0),
            "labels": _padded(labels, label_width, IGNORED),
        }

    def identity(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """What stands for the examples in checksums: all that the model is given of them."""
        return self(examples)

    def end_to_end(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Make a batch in which the rows of a causal model follow each other, without padding.

        Returns:
            int64 tensors (1 x tokens of all rows) `input_ids`, `position_ids`, which begin at 0 in each row, and
            `labels`, which are -100 at a row's first token: the last of the row before must not predict it; and
            `rows`, the length of each row, a tuple of int.
        """
        lengths = tuple(len(example["input_ids"]) for example in examples)
        labels = [[IGNORED, *example["labels"][1:]] for example in examples]
        positions = [torch.arange(length) for length in lengths]
        return {
            "input_ids": _joined(example["input_ids"] for example in examples),
            "position_ids": torch.cat(positions)[None],
            "labels": _joined(labels),
            "rows": lengths,
        }


@dataclass(frozen=True)
class LabelCollator:
    """Pads a classifier's examples on the right, to the longest of them; each has one label.

    Args:
        pad_token_id: fills `input_ids`; see `padding_id`.
        token_types: whether the model tells the two texts of a pair apart by the types of their tokens.
    """

    pad_token_id: int
    token_types: bool = True

    def supervised(self, labels: torch.Tensor) -> torch.Tensor:
        """How many rows of a batch have a loss, a scalar: all of them."""
        return (labels != IGNORED).sum()

    def __call__(self, examples: Sequence[dict[str, list[int]]], width: int | None = None) -> dict[str, torch.Tensor]:
        """Make a batch of examples that hold `input_ids`, one label in `labels` and, it may be, `token_type_ids`.

        Args:
            examples: the examples.
            width: pad the inputs to this length; None is the longest of them.

        Returns:
            int64 tensors `input_ids`, `attention_mask` (1 on tokens and 0 on padding) and, where the model and the
            tokenizer have them, `token_type_ids` (all batch x longest input), and `labels` (batch).
        """
        inputs = [example["input_ids"] for example in examples]
        width = width or _longest(inputs)
        batch = {
            "input_ids": _padded(inputs, width, self.pad_token_id),
            "attention_mask": _padded([[1] * len(ids) for ids in inputs], width, 0),
            "labels": torch.tensor([example["labels"][0] for example in examples], dtype=torch.int64),
        }
        if self.token_types and "token_type_ids" in examples[0]:
            batch["token_type_ids"] = _padded([example["token_type_ids"] for example in examples], width, 0)
        return batch

    def identity(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """What stands for the examples in checksums: all that the model is given of them."""
        return self(examples)


def tokens_in(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of a batch's rows, and those that a pass computes, padding included; an image counts as one."""
    if "pixel_values" in batch:
        return len(batch["labels"]), len(batch["labels"])
    if "rows" in batch:
        return sum(batch["rows"]), sum(batch["rows"])
    return int(batch["attention_mask"].sum()), batch["attention_mask"].numel()


def _joined(lists: Iterable[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([list(chain.from_iterable(lists))], dtype=torch.int64)


def _longest(lists: list[list[int]]) -> int:
    return max(len(ids) for ids in lists)


def _padded(lists: list[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([ids + [filler] * (width - len(ids)) for ids in lists], dtype=torch.int64)
