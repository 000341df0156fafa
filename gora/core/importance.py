"""How much the loss depends on a weight matrix (paper, section 3.2 and Table 6)."""

from typing import Literal

from torch import Tensor
from torch.linalg import matrix_norm

Importance = Literal["sensitivity", "nuclear-gradient", "nuclear-product"]


def importance(weight: Tensor, gradient: Tensor, kind: Importance = "sensitivity") -> float:
    """Importance of one weight matrix, computed in float32.

    Args:
        weight: W, any shape and floating type.
        gradient: G, the mean gradient of the loss with respect to W, same shape.
        kind: `sensitivity` is mean(|W * G|), the paper's choice; `nuclear-gradient` is the sum of the singular
            values of G; `nuclear-product` that of W * G.

    Returns:
        A number that is zero or greater; NaN or infinity in the input is passed on.
    """
    gradient = gradient.float()
    if kind == "nuclear-gradient":
        return matrix_norm(gradient, ord="nuc").item()
    product = weight.float() * gradient
    if kind == "nuclear-product":
        return matrix_norm(product, ord="nuc").item()
    return product.abs_().mean().item()
