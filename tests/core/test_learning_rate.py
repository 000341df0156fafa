"""The rate that follows from a curve of losses under a rising rate."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gora.core.learning_rate import (
    annealed,
    divergence,
    lowest,
    rate_below,
    rate_of_trials,
    rate_under_new_head,
    rising_rates,
    smoothed,
)

STEPS = 45


def limit_of(rates, losses):
    """As `divergence`, where every micro-batch began at 2."""
    return divergence(rates, losses, [2.0] * len(losses))


def curve(rates, limit, noise=lambda step: 0.0):
    """A loss that falls from 2 to 1.5, and rises fast from a limit on."""
    return [2 - 0.5 * rate / (rate + limit / 30) + 2 * max(0.0, math.log(rate / limit)) + noise(step)
            for step, rate in enumerate(rates)]  # fmt: skip


def test_rates_rise_by_one_factor():
    rates = rising_rates(1e-5, 1.0, 11)
    assert rates[0] == 1e-5
    assert rates[-1] == pytest.approx(1.0)
    assert [after / before for before, after in pairwise(rates)] == pytest.approx([10**0.5] * 10)


def test_a_constant_is_smoothed_to_itself_and_no_number_stays_one():
    assert smoothed([3.0] * 9) == pytest.approx([3.0] * 9)
    assert all(math.isfinite(value) for value in smoothed([1.0, math.nan, math.inf, 1.0]))


@settings(deadline=None)
@given(limit=st.floats(1e-3, 1e-1), scale=st.floats(0.1, 10))
def test_the_limit_is_found_whatever_the_loss_is_measured_in(limit, scale):
    rates = rising_rates(1e-5, 1.0, STEPS)
    losses = curve(rates, limit)
    found = limit_of(rates, losses)
    assert limit < found < 3 * limit
    assert divergence(rates, [scale * loss for loss in losses], [scale * 2.0] * STEPS) == pytest.approx(found, rel=1e-6)


LOSSES = st.floats(0.01, 20)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(LOSSES, LOSSES), min_size=2, max_size=STEPS), power=st.integers(-8, 8))
def test_whatever_all_losses_are_multiplied_by_the_limit_and_the_lowest_stay(pairs, power):
    """By powers of two, which change no other digit: any losses will do, those at a threshold too."""
    losses, before = zip(*pairs, strict=True)
    rates, scale = rising_rates(1e-5, 1.0, len(pairs)), 2.0**power
    scaled = [scale * loss for loss in losses]
    assert divergence(rates, scaled, [scale * loss for loss in before]) == divergence(rates, losses, before)
    assert lowest(rates, scaled) == lowest(rates, losses)


@given(ends=st.lists(LOSSES, min_size=3, max_size=4), start=LOSSES, scale=st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_the_rate_of_trials_looks_at_the_size_of_the_loss_only_for_rows_of_an_unknown_form(ends, start, scale):
    rates = rising_rates(1e-4, 1e-2, len(ends))
    one, other = (rate_of_trials(rates, [by * end for end in ends], by * start) for by in (1.0, scale))
    unknown, more_unknown = (max(1.0, by * start / 1.6) for by in (1.0, scale))
    assert one / other == pytest.approx((more_unknown / unknown) ** 0.5)
    assert (one == other) == (unknown == more_unknown)


@settings(deadline=None)
@given(limit=st.floats(1e-3, 1e-1), factor=st.floats(1.5, 5))
def test_a_limit_that_is_higher_gives_a_rate_that_is_higher(limit, factor):
    rates = rising_rates(1e-6, 1.0, STEPS)
    low, high = (limit_of(rates, curve(rates, each)) for each in (limit, limit * factor))
    assert high / low == pytest.approx(factor, rel=0.15)


def test_the_limit_is_known_as_soon_as_the_loss_has_risen_and_not_before():
    rates = rising_rates(1e-5, 1.0, STEPS)
    losses = curve(rates, 1e-2)
    found = [limit_of(rates[:taken], losses[:taken]) for taken in range(1, STEPS + 1)]
    first = next(taken for taken, each in enumerate(found) if each is not None)
    assert found[:first] == [None] * first
    assert found[first] == found[-1]
    assert rates[first - 4] <= found[first] <= rates[first]


def test_rows_that_are_hard_or_easy_change_nothing():
    rates = rising_rates(1e-5, 1.0, STEPS)
    losses = curve(rates, 1e-2)
    harder = [(step * 7 % 5) / 3 for step in range(STEPS)]
    found = divergence(rates, [loss + each for loss, each in zip(losses, harder, strict=True)], [2 + e for e in harder])
    assert found == pytest.approx(limit_of(rates, losses))


def test_a_loss_that_wavers_at_first_has_not_risen():
    rates = rising_rates(1e-5, 1.0, STEPS)
    losses = [loss + 1e-3 * (-1) ** step for step, loss in enumerate(curve(rates, 1e-2))]
    assert limit_of(rates, losses) == pytest.approx(limit_of(rates, curve(rates, 1e-2)), rel=0.02)


def test_a_loss_that_wavers_about_its_start_counts_from_where_it_was_last_below():
    rates = rising_rates(1e-5, 1.0, STEPS)
    wavering = [0.05 * (step * 7 % 5 - 2.2) if step < 28 else 0.0 for step in range(STEPS)]
    losses = [loss + each for loss, each in zip([2.0] * 20 + curve(rates, 1e-2)[20:], wavering, strict=True)]
    assert limit_of(rates, losses) == pytest.approx(limit_of(rates, curve(rates, 1e-2)), rel=0.1)


def test_a_loss_that_never_falls_has_its_limit_where_it_has_clearly_risen():
    rates = rising_rates(1e-5, 1.0, STEPS)
    found = limit_of(rates, [2 + 3 * rate for rate in rates])
    assert 2 + 3 * found > 2.1


def test_a_loss_that_never_rises_has_no_limit():
    rates = rising_rates(1e-5, 1.0, STEPS)
    assert limit_of(rates, [2 - 0.01 * step for step in range(STEPS)]) is None


def test_a_loss_that_is_no_number_counts_as_risen():
    rates = rising_rates(1e-5, 1.0, STEPS)
    losses = [2 - 0.01 * step for step in range(30)] + [math.nan]
    assert rates[29] <= limit_of(rates, losses) <= rates[30]


def test_the_rate_lies_below_by_the_measured_factor_and_further_for_a_new_head():
    assert rate_below(9.5e-2) == pytest.approx(1e-2)
    assert rate_under_new_head(1.5e-1, None, 16.0) == pytest.approx(1e-2)


def test_adapters_under_a_new_head_take_what_is_common_as_far_as_it_keeps_from_the_limit():
    assert rate_under_new_head(0.2, 5e-4, 1.0) == pytest.approx(5e-4)
    assert rate_under_new_head(0.2, 5e-4, 16.0) == pytest.approx(1.25e-4)
    assert rate_under_new_head(9.5 * 2e-4, 5e-4, 1.0) == pytest.approx(2e-4)
    assert rate_under_new_head(1.4e-5, 5e-4, 1.0) == pytest.approx(1.25e-4)  # a loss that rose by chance
    assert rate_under_new_head(None, 5e-4, 1.0) == 5e-4
    assert rate_under_new_head(None, None, 1.0) is None


@given(best=st.floats(-0.69, 0.69), curvature=st.floats(0.01, 10), level=st.floats(0.1, 10))
def test_the_lowest_point_of_a_parabola_is_found_between_the_rates_that_were_tried(best, curvature, level):
    rates = [5e-4, 1e-3, 2e-3]
    losses = [level + curvature * (math.log(rate / 1e-3) - best) ** 2 for rate in rates]
    within = abs(best) <= math.log(2) / 2  # further off one of the outer rates is the lowest
    assert lowest(rates, losses) == pytest.approx(1e-3 * math.exp(best) if within else rates[losses.index(min(losses))])


def test_equal_losses_leave_the_first_of_them():
    assert lowest([1.0, 2.0, 4.0], [3.0, 3.0, 3.0]) == 1.0
    assert lowest([1.0, 2.0, 4.0], [3.0, 2.0, 2.0]) == pytest.approx(2.0 * 2**0.5)


def test_a_trial_rises_to_its_rate_and_comes_down_to_nearly_nothing():
    for steps in (2, 12, 45):
        shares = [annealed(step, steps) for step in range(steps)]
        peak = shares.index(1.0)
        assert all(before < after for before, after in pairwise(shares[: peak + 1]))
        assert all(before >= after for before, after in pairwise(shares[peak:]))
        assert 0 < shares[-1] <= 1.0 / (steps - peak - 1)


def test_rows_of_an_unknown_form_get_a_lower_rate_than_trials_say():
    rates, ends = [1e-3, 2e-3, 4e-3], [2.0, 1.0, 2.0]
    known = rate_of_trials(rates, ends, 0.8)
    assert known == rate_of_trials(rates, ends, 1.6) == pytest.approx(2e-3 / 0.65)
    assert rate_of_trials(rates, ends, 6.4) == pytest.approx(known / 2)
