"""The method's mathematics against an independent float64 computation and the paper's numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from gora.core.importance import importance
from gora.core.initial import (
    SingularFactorError,
    Start,
    draw_a,
    initial_values,
    leading_directions,
    module_alpha,
    scaling,
    solve_b,
)
from gora.core.ranks import RankBounds, adapter_parameters, advantages, allocate, allocate_parameters


def reference_ranks(importances, shapes, reference, smallest, largest):
    """The paper's formula in numpy float64; halves up by adding one half, in exact fractions."""
    shares = np.asarray(importances, dtype=np.float64) / np.sum(np.asarray(importances, dtype=np.float64))
    widths = np.sqrt(np.asarray(shapes, dtype=np.float64).sum(axis=1))
    wanted = np.sum(widths * reference) * shares / widths
    ranks = []
    for value, shape in zip(wanted, shapes, strict=True):
        rounded = math.floor(Fraction(float(value)) + Fraction(1, 2))
        upper = min(largest if largest is not None else min(shape), *shape)
        ranks.append(int(np.clip(rounded, min(smallest, upper), upper)))
    return ranks


def random_layers(seed, count=24):
    generator = np.random.default_rng(seed)
    shapes = [tuple(int(x) for x in generator.choice([64, 96, 256, 688], size=2)) for _ in range(count)]
    return list(generator.lognormal(0, 1.2, size=count)), shapes


@pytest.mark.parametrize("bounds", [(4, 32), (8, 8), (0, 32), (0, None), (6, 15), (1, None)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_equal_the_paper_s_formula_in_float64(bounds, seed):
    importances, shapes = random_layers(seed)
    expected = reference_ranks(importances, shapes, 8, *bounds)
    assert allocate(importances, shapes, 8, RankBounds(*bounds)) == expected


def test_equal_importance_and_shape_gives_everybody_the_reference_rank():
    assert allocate([2.0] * 5, [(64, 32)] * 5, 8, RankBounds(4, 32)) == [8] * 5


def test_one_target_gets_the_reference_rank():
    assert allocate([0.3], [(64, 32)], 8, RankBounds(4, 32)) == [8]


def test_equal_bounds_give_one_rank_whatever_the_importance():
    importances, shapes = random_layers(3)
    assert set(allocate(importances, shapes, 8, RankBounds(8, 8))) == {8}


def test_a_layer_without_importance_gets_the_smallest_rank_or_none():
    shapes = [(64, 64)] * 3
    assert allocate([1.0, 0.0, 1.0], shapes, 8, RankBounds(4, 32)) == [12, 4, 12]
    assert allocate([1.0, 0.0, 1.0], shapes, 8, RankBounds(0, 32)) == [12, 0, 12]


def test_halves_are_rounded_up():
    # Two layers of equal shape share 2 * r; shares 2.5/16 and 13.5/16 of 16 give 2.5 and 13.5.
    assert allocate([2.5, 13.5], [(32, 32)] * 2, 8, RankBounds(0, None)) == [3, 14]


def test_an_unbounded_rank_stops_at_the_width_of_the_matrix():
    assert allocate([1.0, 1e-9], [(16, 64), (64, 64)], 32, RankBounds(0, None))[0] == 16


@pytest.mark.parametrize("importances", [[0.0, 0.0], [1.0, math.nan], [1.0, -1.0], [math.inf, 1.0]])
def test_importances_that_say_nothing_are_refused(importances):
    with pytest.raises(ValueError, match="importance"):
        allocate(importances, [(8, 8)] * 2, 4, RankBounds(1, 8))


def test_advantages_sum_to_one():
    assert math.isclose(sum(advantages([0.1, 0.7, 3.0])), 1.0, rel_tol=1e-15)


@pytest.mark.parametrize("seed", range(6))
def test_parameter_budget_lands_nearer_to_lora_than_the_paper_s_formula(seed):
    importances, shapes = random_layers(seed, count=40)
    bounds = RankBounds(4, 32)
    aim = adapter_parameters(shapes, [8] * 40)
    paper = adapter_parameters(shapes, allocate(importances, shapes, 8, bounds))
    balanced = adapter_parameters(shapes, allocate_parameters(importances, shapes, 8, bounds))
    assert abs(balanced - aim) <= abs(paper - aim)
    assert abs(balanced / aim - 1) < 0.02


def test_parameter_budget_keeps_the_order_of_importance():
    ranks = allocate_parameters([1.0, 2.0, 4.0, 8.0], [(64, 64)] * 4, 8, RankBounds(1, 64))
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_parameter_budget_ends_when_bounds_forbid_the_aim():
    assert allocate_parameters([1.0, 3.0], [(64, 64)] * 2, 8, RankBounds(1, 4)) == [4, 4]
    assert allocate_parameters([1.0, 3.0], [(64, 64)] * 2, 8, RankBounds(16, 32)) == [16, 16]


def reference_b(gradient, factor_a, gamma, alpha):
    """-xi G A^T (A A^T)^-1 in numpy float64, by least squares instead of a factorisation."""
    g, a = gradient.double().numpy(), factor_a.double().numpy()
    solution, *_ = np.linalg.lstsq(a.T, g.T, rcond=None)
    return -gamma * math.sqrt(a.shape[1]) / alpha * solution.T


@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 48, 8), (48, 256, 32), (16, 16, 16), (7, 5, 1)])
def test_b_equals_the_least_squares_solution_in_float64(rows, columns, rank):
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 1e-3
    factor_a = draw_a("layer", rank, columns, seed=0)
    expected = reference_b(gradient, factor_a, gamma=0.05, alpha=16)
    found = solve_b(gradient, factor_a, gamma=0.05, alpha=16)
    assert found.dtype == torch.float32
    assert found.shape == (rows, rank)
    assert np.linalg.norm(found.double().numpy() - expected) <= 1e-7 * np.linalg.norm(expected)


def test_b_a_is_minus_the_projection_of_the_gradient_on_the_rows_of_a():
    gradient = torch.randn(40, 24, dtype=torch.float64)
    factor_a = draw_a("layer", 6, 24, seed=0)
    product = solve_b(gradient, factor_a, gamma=1.0, alpha=math.sqrt(24)).double() @ factor_a.double()
    basis = torch.linalg.qr(factor_a.double().T).Q
    torch.testing.assert_close(product, -gradient @ basis @ basis.T, rtol=1e-5, atol=1e-6)


def test_the_first_step_has_gamma_times_the_gradient_s_norm_on_average():
    ratios = []
    for seed in range(20):
        gradient = torch.randn(128, 512, generator=torch.Generator().manual_seed(seed))
        factor_a = draw_a("layer", 8, 512, seed=seed)
        update = scaling(16, 8) * solve_b(gradient, factor_a, gamma=0.05, alpha=16) @ factor_a
        ratios.append((update.norm() / gradient.norm()).item())
    assert abs(np.mean(ratios) / 0.05 - 1) < 0.03


def falling_gradient(rows, columns):
    """A gradient whose singular values fall as 1/k, as those of trained models do."""
    generator = torch.Generator().manual_seed(2)
    left = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64, generator=generator)).Q
    small = min(rows, columns)
    values = 1 / torch.arange(1, small + 1, dtype=torch.float64)
    return (1e-3 * left[:, :small] * values @ right[:, :small].T).float()


@pytest.mark.parametrize(("rows", "columns", "rank"), [(96, 64, 8), (48, 256, 32), (16, 24, 16), (7, 5, 1)])
def test_the_leading_directions_hold_the_best_approximation_of_the_gradient(rows, columns, rank):
    gradient = falling_gradient(rows, columns)
    directions = leading_directions(gradient, rank)
    assert directions.shape == (rank, columns)
    torch.testing.assert_close(directions @ directions.T, torch.eye(rank) / 3, rtol=0, atol=1e-5)
    kept = 3 * gradient.double() @ directions.double().T @ directions.double()
    values = np.linalg.svd(gradient.double().numpy(), compute_uv=False)
    missed = (gradient.double() - kept).norm().item()
    best = np.sqrt((values[rank:] ** 2).sum())
    assert missed <= 1.001 * best + 1e-9


def test_rows_in_the_gradient_s_directions_are_as_long_as_random_ones():
    drawn = draw_a("layer", 64, 512, seed=0).norm(dim=1).mean()
    assert leading_directions(torch.randn(128, 512), 8).norm(dim=1).mean() == pytest.approx(drawn.item(), rel=0.01)


def test_the_step_along_the_gradient_s_directions_has_exactly_gamma_times_its_norm():
    gradient = falling_gradient(96, 64)
    factor_a, factor_b = initial_values("layer", gradient, 8, Start(0, 0.05, 16.0, "gradient"))
    update = scaling(16, 8) * factor_b.double() @ factor_a.double()
    assert (update.norm() / gradient.double().norm()).item() == pytest.approx(0.05, rel=1e-5)
    left, values, right = np.linalg.svd(gradient.double().numpy())
    best = torch.tensor(left[:, :8] * values[:8] @ right[:8])
    assert torch.nn.functional.cosine_similarity(update.flatten(), -best.flatten(), 0) > 0.9999


def test_directions_are_orthogonal_where_the_gradient_has_fewer_of_them():
    gradient = torch.zeros(24, 16)
    gradient[3] = torch.arange(16.0)
    factor_a, factor_b = initial_values("layer", gradient, 8, Start(0, 0.05, 16.0, "gradient"))
    torch.testing.assert_close(factor_a @ factor_a.T, torch.eye(8) / 3, rtol=0, atol=1e-5)
    update = scaling(16, 8) * factor_b @ factor_a
    torch.testing.assert_close(update, -0.05 * gradient, rtol=1e-4, atol=1e-5)


def test_with_gamma_zero_only_a_follows_the_gradient():
    factor_a, factor_b = initial_values("layer", falling_gradient(12, 8), 4, Start(0, 0.0, 16.0, "gradient"))
    assert torch.equal(factor_a, leading_directions(falling_gradient(12, 8), 4))
    assert not factor_b.any()


def test_a_gradient_of_zero_gives_b_zero():
    assert not solve_b(torch.zeros(8, 6), draw_a("layer", 4, 6, 0), 0.05, 16).any()
    factor_a, factor_b = initial_values("layer", torch.zeros(8, 6), 4, Start(0, 0.05, 16.0, "gradient"))
    assert factor_a.isfinite().all()
    assert not factor_b.any()


def test_gamma_zero_gives_b_zero():
    assert not solve_b(torch.randn(8, 6), draw_a("layer", 4, 6, 0), 0.0, 16).any()


def test_dependent_rows_of_a_are_named():
    with pytest.raises(SingularFactorError, match="linearly dependent"):
        solve_b(torch.randn(8, 6), torch.ones(2, 6), 0.05, 16)


def test_a_follows_peft_s_distribution_and_depends_on_name_and_seed_only():
    factor_a = draw_a("model.layers.0.self_attn.q_proj", 64, 1024, seed=3)
    bound = 1 / math.sqrt(1024)
    peft = torch.empty(64, 1024)
    torch.nn.init.kaiming_uniform_(peft, a=math.sqrt(5))
    assert factor_a.abs().max() <= bound
    assert abs(factor_a.std() / peft.std() - 1) < 0.02
    assert torch.equal(factor_a, draw_a("model.layers.0.self_attn.q_proj", 64, 1024, seed=3))
    assert not torch.equal(factor_a, draw_a("model.layers.0.self_attn.k_proj", 64, 1024, seed=3))
    assert not torch.equal(factor_a, draw_a("model.layers.0.self_attn.q_proj", 64, 1024, seed=4))


@pytest.mark.parametrize("alpha", [16.0, 10.0, 0.3])
def test_scaling_is_alpha_over_root_rank_and_peft_s_division_gives_it_to_the_last_bit(alpha):
    for rank in range(1, 513):
        assert math.isclose(scaling(alpha, rank), alpha / math.sqrt(rank), rel_tol=4e-16)
        assert module_alpha(alpha, rank) / rank == scaling(alpha, rank)


@pytest.mark.parametrize("kind", ["sensitivity", "nuclear-gradient", "nuclear-product"])
def test_importance_equals_numpy_s(kind):
    weight, gradient = torch.randn(20, 12), torch.randn(20, 12) * 1e-2
    w, g = weight.double().numpy(), gradient.double().numpy()
    expected = {
        "sensitivity": np.abs(w * g).mean(),
        "nuclear-gradient": np.linalg.svd(g, compute_uv=False).sum(),
        "nuclear-product": np.linalg.svd(w * g, compute_uv=False).sum(),
    }[kind]
    assert math.isclose(importance(weight, gradient, kind), expected, rel_tol=1e-5)


def test_importance_leaves_its_inputs_alone():
    weight, gradient = torch.ones(3, 3), torch.full((3, 3), -2.0)
    assert importance(weight, gradient) == 2.0
    assert (gradient == -2).all()
    assert (weight == 1).all()
