"""A look at a micro-batch's gradients that keeps none of them."""

from __future__ import annotations

import torch
from torch import Tensor


class Probe:
    """Counts the keys that are added to, and notices NaN and infinity; takes the place of sums for one pass.

    Args:
        device: where the model computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seen: set[str] = set()
        self._trace = torch.zeros((), device=device)

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """Take note of a layer's output gradient and input."""
        self.seen.add(key)
        # Zero times a finite sum is zero; NaN and infinity come through as NaN.
        self._trace += 0 * (gradient.sum(dtype=torch.float32) + inputs.sum(dtype=torch.float32))

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """Take note of a whole weight gradient."""
        self.seen.add(key)
        self._trace += 0 * matrix.sum(dtype=torch.float32)

    @property
    def finite(self) -> bool:
        """Whether everything so far was finite."""
        return bool(self._trace.isfinite())
