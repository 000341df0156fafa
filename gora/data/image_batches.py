"""Images become a batch of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gora.data.encode import IGNORED


@dataclass(frozen=True)
class ImageCollator:
    """Stacks images of one size; each has one label."""

    def supervised(self, labels: torch.Tensor) -> torch.Tensor:
        """How many images of a batch have a loss, a scalar: all but those that keep a process busy."""
        return (labels != IGNORED).sum()

    def __call__(self, examples: Sequence[dict[str, Any]], width: int | None = None) -> dict[str, torch.Tensor]:
        """Make a batch of examples that hold `pixel_values` and one label in `labels`.

        Args:
            examples: the examples.
            width: not used: all are as large.

        Returns:
            `pixel_values` (batch x channels x height x width) and `labels` (int64, batch).
        """
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"][0] for example in examples], dtype=torch.int64),
        }

    def identity(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What stands for the examples in checksums, in the form of a batch of texts: the digests of their images."""
        ids = torch.tensor([example["input_ids"] for example in examples], dtype=torch.int64)
        labels = torch.tensor([example["labels"] for example in examples], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
