"""One product: the weight gradient of a linear layer, added to a float32 sum."""

from torch import Tensor, addmm, float32, float64


def add_outer(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """total += gradient^T inputs, with float32 sums whatever the operands' type.

    On CUDA with half-width operands this is one kernel that reads and writes the sum once (torch >= 2.8). Elsewhere
    the operands are widened first, which is exact.

    Args:
        total: (out, in) float32, changed in place.
        gradient: gradient of the loss with respect to the layer's output, (..., out).
        inputs: what the layer was given, (..., in); cast to the gradient's type, as autocast does.
    """
    gradient = gradient.reshape(-1, total.shape[0])
    inputs = inputs.reshape(-1, total.shape[1]).to(gradient.dtype)
    if gradient.dtype == float64:
        total += gradient.T @ inputs
    elif gradient.dtype == float32 or not total.is_cuda:
        total.addmm_(gradient.float().T, inputs.float())
    else:
        addmm(total, gradient.T, inputs, out_dtype=float32, out=total)
