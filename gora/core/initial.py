"""Initial values of the adapter (paper, section 3.3 and appendix A.1): the first step of gradient descent, compressed.

Shapes are torch's: a weight and its gradient G are (out, in), A is (r, in), B is (out, r), and the layer computes
x (W + scaling B A)^T. The paper writes the transposes of all of them.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

InitA = Literal["random", "gradient", "sign"]
Step = Literal["gradient", "spectral", "weight", "weight-spectral"]
Scale = Literal["mean", "exact"]
_SUBSPACE_ITERATIONS = 6


@dataclass(frozen=True)
class Start:
    """Settings of the initial values.

    Attributes:
        seed: seed of A.
        gamma: size of the first step relative to what `step` names.
        alpha: scaling numerator.
        init_a: A drawn at random, as in the paper, or in the leading directions of the gradient or of its signs.
        step: what the first step of a layer, s B A, is measured against: its gradient, |s B A|_F = gamma |G|_F;
            nothing, |s B A|_2 = gamma in every layer (`spectral`); or its weight, |s B A|_F = gamma |W|_F (`weight`)
            or |s B A|_2 = gamma |W|_2 (`weight-spectral`).
        scale: whether a step against the gradient with a random A has its size on average (`mean`, as in the paper) or
            in each layer (`exact`); every other step is exact.
        balance: whether A and B share the singular values of the step, where A is not drawn.
        weight_norm: the norm of the layer's W that the step is measured against, where it is.
    """

    seed: int
    gamma: float
    alpha: float
    init_a: InitA = "random"
    step: Step = "gradient"
    scale: Scale = "mean"
    balance: bool = False
    weight_norm: float | None = None


class SingularFactorError(ValueError):
    """A A^T cannot be factorised: the rows of A are linearly dependent, or not finite."""


def initial_values(name: str, gradient: Tensor, rank: int, start: Start) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of a layer, float32 on the CPU.

    Args:
        name: the layer's name.
        gradient: G, the mean gradient, (out, in).
        rank: its rank.
        start: settings.
    """
    if start.init_a == "random":
        factor_a = draw_a(name, rank, gradient.shape[1], start.seed)
        factor_b = solve_b(gradient, factor_a, start.gamma, start.alpha)
        if start.step == "gradient" and start.scale == "mean":
            return factor_a, factor_b.cpu()
    else:
        factor_a = leading_directions(gradient if start.init_a == "gradient" else gradient.sign(), rank)
        factor_b = step_along(gradient, factor_a, start.gamma, start.alpha)
        if start.step == "gradient" and not start.balance:
            return factor_a.cpu(), factor_b.cpu()
    factor_a, factor_b = sized(factor_a, factor_b, _wanted_size(gradient, start), start)
    return factor_a.cpu(), factor_b.cpu()


def sized(factor_a: Tensor, factor_b: Tensor, size: float, start: Start) -> tuple[Tensor, Tensor]:
    """The same step in another size, float32; A changes only where it is to be balanced with B.

    Args:
        factor_a: A, (r, in), rows linearly independent.
        factor_b: B, (out, r).
        size: norm of s B A that is wanted.
        start: says which norm, and whether A and B share the singular values of B A.
    """
    # With A^T = Q R, B A = (B R^T) Q^T has the norms and left singular vectors of a narrow matrix.
    turned, triangle = torch.linalg.qr(factor_a.to(factor_b.device, torch.float64).T)
    narrow = factor_b.double() @ triangle.T
    order = 2 if start.step in ("spectral", "weight-spectral") else "fro"
    now = scaling(start.alpha, len(factor_a)) * torch.linalg.matrix_norm(narrow, ord=order)
    if not size or not now:
        return factor_a, torch.zeros_like(factor_b)
    if not start.balance:
        return factor_a, (factor_b.double() * (size / now)).float()
    left, values, right = torch.linalg.svd(narrow * (size / now), full_matrices=False)
    roots = values.sqrt()
    return (roots[:, None] * (right @ turned.T)).float().contiguous(), (left * roots).float().contiguous()


def _wanted_size(gradient: Tensor, start: Start) -> float:
    if start.step == "gradient":
        return start.gamma * gradient.double().norm().item()
    if start.step == "spectral":
        # Where no gradient comes, there is no direction to step in.
        return start.gamma
    if start.weight_norm is None:
        raise ValueError(f"a step of kind {start.step} needs the norm of the weight")
    return start.gamma * start.weight_norm


def scaling(alpha: float, rank: int) -> float:
    """Factor in front of B A: alpha / sqrt(r), as rsLoRA.

    Computed as (alpha sqrt(r)) / r, because PEFT divides a module's alpha by its rank: with `module_alpha` as that
    alpha it arrives at the same number to the last bit.
    """
    return module_alpha(alpha, rank) / rank


def module_alpha(alpha: float, rank: int) -> float:
    """The alpha that LoRA's alpha / r turns into alpha / sqrt(r)."""
    return alpha * math.sqrt(rank)


def draw_a(name: str, rank: int, in_features: int, seed: int) -> Tensor:
    """A ~ kaiming_uniform(a = sqrt(5)), that is uniform in +-1/sqrt(in), float32 (r, in) on the CPU.

    The generator is seeded with the layer's name, so that a layer gets the same values whatever the other layers,
    the number of processes or the device are.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)


def leading_directions(gradient: Tensor, rank: int) -> Tensor:
    """Leading right singular vectors of G as the rows of A, float32 (r, in), on the gradient's device.

    Each row has length 1/sqrt(3), which rows drawn by `draw_a` have on average. Not of the paper: a random A lets B
    hold only the part of G in r random directions; this one holds its best approximation of rank r.

    Args:
        gradient: G, the mean gradient, (out, in).
        rank: r, at most the smaller side of G.
    """
    return (leading_components(gradient, rank)[2] / math.sqrt(3)).float().contiguous()


def leading_components(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets of a matrix, float64 on its device: U (out, count), S (count), V^T (count, in).

    By subspace iteration from the same matrix every time, the greatest entry of each row of V^T positive.

    Args:
        matrix: (out, in).
        count: how many, at most its smaller side.
    """
    width = min(2 * count, *matrix.shape)
    drawn = torch.randn(matrix.shape[0], width, generator=torch.Generator().manual_seed(0))
    single, basis = matrix.float(), drawn.to(matrix.device)
    for _ in range(_SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(single @ torch.linalg.qr(single.T @ basis).Q).Q
    # In float64, so that the rows are orthogonal also where hardly anything of the matrix is left.
    wide = basis.double()
    left, values, rows = torch.linalg.svd(wide.T @ matrix.double(), full_matrices=False)
    rows = rows[:count]
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    return wide @ left[:, :count] * signs.T, values[:count], rows * signs


def step_along(gradient: Tensor, directions: Tensor, gamma: float, alpha: float) -> Tensor:
    """B for orthogonal rows of A of equal length, float32 (out, r): the layer moves against G, on the rows of A.

    The size of the step is exact, scaling ||B A||_F = gamma ||G||_F, where `solve_b` has it under the assumption that A
    is isotropic.

    Args:
        gradient: G, the mean gradient, (out, in).
        directions: A, (r, in).
        gamma: size of the step relative to the gradient.
        alpha: scaling numerator.
    """
    projected = gradient.double() @ directions.double().T
    moved = projected.norm() * directions[0].double().norm()
    if not moved:
        return torch.zeros_like(projected, dtype=torch.float32)
    return (projected * (-gamma * gradient.double().norm() / (scaling(alpha, len(directions)) * moved))).float()


def solve_b(gradient: Tensor, factor_a: Tensor, gamma: float, alpha: float) -> Tensor:
    """B = -xi G A^T (A A^T)^-1 with xi = gamma sqrt(in) / alpha, float32 (out, r), on the gradient's device.

    B A is then minus xi times the projection of G on the row space of A, and under the paper's isotropy assumption
    the layer moves by scaling ||B A||_F = gamma ||G||_F.

    Args:
        gradient: G, the mean gradient, (out, in).
        factor_a: A, (r, in).
        gamma: size of the step relative to the gradient.
        alpha: scaling numerator.

    Raises:
        SingularFactorError: the rows of A are linearly dependent.
    """
    wide = factor_a.to(gradient.device, torch.float64)
    return solve_projected(gradient.double() @ wide.T, factor_a, gamma, alpha)


def solve_projected(projected: Tensor, factor_a: Tensor, gamma: float, alpha: float) -> Tensor:
    """As `solve_b`, from the projected gradient.

    Computed in float64, the r x r system by a Cholesky factorisation: the normal equations square the condition number
    of A, which float32 would not bear.

    Args:
        projected: G A^T, (out, r).
        factor_a: A, (r, in).
        gamma: size of the step relative to the gradient.
        alpha: scaling numerator.

    Raises:
        SingularFactorError: the rows of A are linearly dependent.
    """
    rank, in_features = factor_a.shape
    wide = factor_a.to(projected.device, torch.float64)
    triangle, failed = torch.linalg.cholesky_ex(wide @ wide.T)
    if failed.item() or not torch.isfinite(triangle).all():
        raise SingularFactorError(
            f"A A^T is singular (rank {rank}, {in_features} inputs): its rows are linearly dependent"
        )
    step = gamma * math.sqrt(in_features) / alpha
    return (-step * torch.cholesky_solve(projected.double().T, triangle).T).float().contiguous()
