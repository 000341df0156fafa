"""The variants of the first step against their formulas in numpy's float64."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from gora.core.importance import importance
from gora.core.initial import Start, draw_a, initial_values, scaling
from gora.gradients.statistics import norm_of
from gora.methods import lora_one
from tests.core.test_core import falling_gradient

GRADIENT = falling_gradient(96, 64)
RANK, ALPHA = 8, 16.0


def start(**settings):
    return Start(seed=0, **{"gamma": 0.05, "alpha": ALPHA, **settings})


def step_of(settings, gradient=GRADIENT):
    factor_a, factor_b = (f.double().numpy() for f in initial_values("layer", gradient, RANK, start(**settings)))
    return scaling(ALPHA, RANK) * factor_b @ factor_a


def cosine(one, other):
    return (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)


SIZES = {
    "gradient": ("fro", 0.05 * np.linalg.norm(GRADIENT.double().numpy())),
    "spectral": (2, 0.05),
    "weight": ("fro", 0.05 * 7.0),
    "weight-spectral": (2, 0.05 * 7.0),
}


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(("init_a", "step"), product(["random", "gradient", "sign"], SIZES))
def test_every_step_has_exactly_the_size_that_it_is_measured_by(init_a, step, balance):
    order, size = SIZES[step]
    found = step_of({"init_a": init_a, "step": step, "scale": "exact", "balance": balance, "weight_norm": 7.0})
    assert np.linalg.norm(found, ord=order) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("step", SIZES)
def test_the_size_of_a_step_does_not_change_its_direction(step):
    """It is against the gradient, projected on the rows of A."""
    for init_a in ("random", "gradient", "sign"):
        factor_a, _ = initial_values("layer", GRADIENT, RANK, start(init_a=init_a, scale="exact"))
        basis = np.linalg.qr(factor_a.double().numpy().T)[0]
        projected = -GRADIENT.double().numpy() @ basis @ basis.T
        settings = {"init_a": init_a, "step": step, "scale": "exact", "weight_norm": 7.0}
        assert cosine(step_of(settings), projected) > 1 - 1e-9


def test_on_average_the_paper_s_step_has_the_exact_one_s_size():
    ratios = []
    for seed in range(20):
        gradient = torch.randn(128, 512, generator=torch.Generator().manual_seed(seed))
        ratios.append(np.linalg.norm(step_of({}, gradient)) / np.linalg.norm(step_of({"scale": "exact"}, gradient)))
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert max(ratios) - min(ratios) > 1e-4


def test_a_drawn_a_stays_as_it_is_in_every_size():
    for step in SIZES:
        factor_a, _ = initial_values("layer", GRADIENT, RANK, start(step=step, scale="exact", weight_norm=7.0))
        assert torch.equal(factor_a, draw_a("layer", RANK, 64, 0))


def test_a_of_the_signs_is_their_leading_right_singular_vector():
    drawn = torch.Generator().manual_seed(1)
    signs = (torch.ones(64, 1) @ torch.randn(1, 12, generator=drawn) + torch.randn(64, 12, generator=drawn) / 3).sign()
    gradient = signs * torch.logspace(0, -6, 12)
    leading = np.linalg.svd(np.sign(gradient.double().numpy()))[2][0]
    factor_a, factor_b = initial_values("layer", gradient, 1, start(init_a="sign"))
    assert abs(cosine(factor_a[0].double().numpy(), leading)) > 1 - 1e-5
    assert factor_a.norm() == pytest.approx(1 / math.sqrt(3))
    along, _ = initial_values("layer", gradient, 1, start(init_a="gradient"))
    assert abs(cosine(along[0].double().numpy(), leading)) < 0.9
    assert (factor_b.double() @ factor_a.double() * gradient).sum() < 0


@pytest.mark.parametrize("init_a", ["gradient", "sign"])
def test_balanced_factors_share_the_roots_of_the_singular_values(init_a):
    factor_a, factor_b = (
        f.double().numpy() for f in initial_values("layer", GRADIENT, RANK, start(init_a=init_a, balance=True))
    )
    values = np.linalg.svd(factor_b @ factor_a)[1][:RANK]
    assert np.allclose(factor_a @ factor_a.T, np.diag(values), atol=1e-6 * values[0])
    assert np.allclose(factor_b.T @ factor_b, np.diag(values), atol=1e-6 * values[0])
    plain = step_of({"init_a": init_a})
    assert np.abs(step_of({"init_a": init_a, "balance": True}) - plain).max() < 1e-5 * np.abs(plain).max()


def test_balanced_steps_of_one_spectral_norm_are_lora_one_s():
    gamma = ALPHA / (128 * math.sqrt(RANK))
    assert gamma == pytest.approx(0.0442, abs=1e-4)
    mine = initial_values("layer", GRADIENT, RANK, start(init_a="gradient", step="spectral", balance=True, gamma=gamma))
    for found, expected in zip(mine, lora_one.starting_factors(GRADIENT, RANK), strict=True):
        assert torch.linalg.matrix_norm(found.abs() - expected.abs()) < 1e-4 * torch.linalg.matrix_norm(expected)


@pytest.mark.parametrize(("init_a", "step"), product(["random", "gradient", "sign"], SIZES))
def test_without_a_gradient_or_with_gamma_zero_every_start_is_the_base(init_a, step):
    settings = {"init_a": init_a, "step": step, "scale": "exact", "weight_norm": 7.0, "balance": init_a != "random"}
    for gradient, gamma in ((torch.zeros(12, 9), 0.05), (GRADIENT, 0.0)):
        factor_a, factor_b = initial_values("layer", gradient, RANK, start(**settings, gamma=gamma))
        assert not factor_b.any()
        assert factor_a.isfinite().all() and factor_a.any()


def test_a_step_against_the_weight_needs_its_norm():
    with pytest.raises(ValueError, match="needs the norm of the weight"):
        initial_values("layer", GRADIENT, RANK, start(step="weight"))


@pytest.mark.parametrize("shape", [(96, 64), (48, 256), (5, 7)])
def test_norms_of_weights_are_numpy_s(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert norm_of(weight, "frobenius") == pytest.approx(np.linalg.norm(weight.numpy()), rel=1e-5)
    assert norm_of(weight, "spectral") == pytest.approx(np.linalg.norm(weight.double().numpy(), ord=2), rel=0.01)


def test_effective_rank_counts_directions_whatever_their_size():
    flat = torch.linalg.qr(torch.randn(20, 6)).Q @ torch.linalg.qr(torch.randn(12, 6)).Q.T
    assert importance(flat, 1e-5 * flat, "effective-rank") == pytest.approx(6, rel=1e-4)
    values = np.linalg.svd(GRADIENT.double().numpy())[1]
    shares = values / values.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert importance(GRADIENT, GRADIENT, "effective-rank") == pytest.approx(expected, rel=1e-4)
    assert importance(GRADIENT, torch.zeros(3, 4), "effective-rank") == 0
