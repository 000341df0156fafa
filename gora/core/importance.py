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
    return importance_on_device(weight, gradient, kind).item()


def importance_on_device(weight: Tensor, gradient: Tensor, kind: Importance) -> Tensor:
    """The same as a scalar on the device, for which the host does not have to wait."""
    gradient = gradient.float()
    if kind == "nuclear-gradient":
        return matrix_norm(gradient, ord="nuc")
    if kind == "effective-rank":
        return _effective_rank(svdvals(gradient).double())
    product = weight.float() * gradient
    if kind == "nuclear-product":
        return matrix_norm(product, ord="nuc")
    return product.abs_().mean()


def _effective_rank(values: Tensor) -> Tensor:
    total = values.sum()
    directions = torch.special.entr(values / total).sum().exp()
    return directions.where(total != 0, 0.0)
