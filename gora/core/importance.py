"""How much the loss depends on a weight matrix (paper, section 3.2 and Table 6)."""

from typing import Literal

import torch
from torch import Tensor
from torch.linalg import matrix_norm, svdvals

Importance = Literal["sensitivity", "nuclear-gradient", "nuclear-product", "effective-rank"]


def importance(weight: Tensor, gradient: Tensor, kind: Importance = "sensitivity") -> float:
    """Importance of one weight matrix, computed in float32.

    Args:
        weight: W, any shape and floating type.
        gradient: G, the mean gradient of the loss with respect to W, same shape.
        kind: `sensitivity` is mean(|W * G|), the paper's choice; `nuclear-gradient` is the sum of the singular
            values of G; `nuclear-product` that of W * G; `effective-rank` is exp(-sum p log p) with p the singular
            values of G over their sum, the number of directions that G has, which says nothing of its size.

    Returns:
        A number that is zero or greater; NaN or infinity in the input is passed on.
    """
    gradient = gradient.float()
    if kind == "nuclear-gradient":
        return matrix_norm(gradient, ord="nuc").item()
    if kind == "effective-rank":
        return _effective_rank(svdvals(gradient).double())
    product = weight.float() * gradient
    if kind == "nuclear-product":
        return matrix_norm(product, ord="nuc").item()
    return product.abs_().mean().item()


def _effective_rank(values: Tensor) -> float:
    total = values.sum()
    if not total:
        return 0.0
    shares = values / total
    return torch.special.entr(shares).sum().exp().item()
