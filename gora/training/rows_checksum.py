"""Which rows an optimizer step was taken on, as one number: equal in runs that saw the same rows in the same step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Odd numbers without structure: every bit of a token reaches the upper bits of the sum, which the shift brings down.
_FIRST, _SECOND = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9


def rows_checksum(batch: Mapping[str, Tensor]) -> Tensor:
    """Sum over rows of a hash of the row's tokens and labels: int64, a scalar on the batch's device, wrapping around.

    Padding does not count, and a sum does not depend on how rows fall into micro-batches and processes.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, padded on the right with 0 in the mask and -100.
    """
    inputs = _per_row(batch["input_ids"], batch["attention_mask"] != 0)
    # A classifier's row has a single label.
    labels = batch["labels"].reshape(len(batch["labels"]), -1)
    has_labels = (labels != -100).any(dim=1)
    labels = _per_row(labels, labels != -100)
    # A row without labels only keeps a process busy that has none of its own.
    return (_mixed(_mixed(inputs) + labels) * has_labels).sum()


def _per_row(ids: Tensor, counts: Tensor) -> Tensor:
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device, dtype=torch.int64)
    return ((ids.long() + 1) * _mixed(places) * counts).sum(dim=1)


def _mixed(values: Tensor) -> Tensor:
    values = values * _FIRST
    values = (values ^ (values >> 29)) * _SECOND
    return values ^ (values >> 32)
