"""The search for a step's size against dense grids."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gora.core.search import least_along

EVERY = settings(deadline=None, derandomize=True, database=None)


class Looks:
    """A loss along a line that counts how often it is asked."""

    def __init__(self, loss):
        self.loss, self.count = loss, 0

    def __call__(self, value):
        self.count += 1
        return self.loss(value)


def bowl(best, depth=1.0, power=2):
    """Falls from 3 at 0 to 3 - depth at `best`, and rises beyond it; a parabola for power 2."""
    return lambda value: 3 - depth * (1 - abs(value / best - 1) ** power)


@EVERY
@given(
    best=st.floats(-5, 2).map(lambda exponent: 10**exponent),
    first=st.sampled_from([0.05, 1.0]),
    power=st.floats(1.2, 4),
)
def test_the_value_is_within_one_bracket_of_a_dense_grid_s_with_fifteen_looks(best, first, power):
    looks = Looks(bowl(best, power=power))
    found = least_along(looks, first)
    assert looks.count == len(found.curve) <= 15
    grid = [best * 1.02**step for step in range(-400, 400)]
    dense = min(grid, key=looks.loss)
    assert found.below <= dense <= found.above
    assert found.least < found.base == 3
    assert found.value in dict(found.curve)
    assert list(found.curve) == sorted(found.curve)


@EVERY
@given(best=st.floats(-3, 0.5).map(lambda exponent: 10**exponent))
def test_a_value_near_the_first_is_found_to_a_factor_of_one_and_a_half(best):
    found = least_along(bowl(best), 0.05)
    assert found.above / found.below <= 1.5
    assert found.least < 3 - 0.95


def test_nothing_is_better_than_no_step():
    looks = Looks(lambda value: 2.0 + value)
    found = least_along(looks, 0.05)
    assert (found.value, found.least, found.base, found.below) == (0.0, 2.0, 2.0, 0.0)
    assert looks.count <= 15
    assert least_along(lambda value: 2.0, 0.05).value == 0


def test_losses_that_are_not_finite_are_worse_than_any():
    found = least_along(lambda value: math.nan if value > 1e-3 else bowl(2e-3)(value), 0.05)
    assert 2e-4 < found.value <= 1e-3
    assert all(math.isfinite(loss) for _, loss in found.curve)
    with pytest.raises(ValueError, match="without a step is nan"):
        least_along(lambda value: math.nan, 0.05)


def test_a_loss_that_always_falls_is_followed_as_far_as_looks_reach():
    found = least_along(lambda value: -value, 0.05)
    assert math.isinf(found.above)
    assert found.value == pytest.approx(0.05 * 8**11)


def test_the_deeper_of_two_valleys_is_found():
    def loss(value):
        return (
            3 - 0.2 * math.exp(-(math.log(value / 0.05) ** 2)) - math.exp(-(math.log(value / 2) ** 2)) if value else 3
        )

    found = least_along(loss, 0.05)
    assert found.below <= 2 <= found.above
