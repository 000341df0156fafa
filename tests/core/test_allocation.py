"""What every allocation of ranks keeps to, whatever the importances and shapes."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gora.core.ranks import RankBounds, Rule, adapter_parameters, allocate, allocate_parameters, shares_of

EVERY = settings(deadline=None, derandomize=True, database=None)
RULES = [Rule(), Rule("equal"), Rule("sqrt"), Rule("softmax"), Rule("softmax", 2.0)]
CHOICES = [allocate, allocate_parameters]
SIDES = st.sampled_from([24, 64, 96, 256, 688])


@st.composite
def layers(draw, same_shape=False):
    """Importances and shapes of some layers, a reference rank, and bounds round it that may reach 0."""
    count = draw(st.integers(1, 16))
    importances = draw(st.lists(st.floats(1e-6, 1e3) | st.just(0.0), min_size=count, max_size=count))
    assume(sum(importances) > 0)
    shape = draw(st.tuples(SIDES, SIDES))
    shapes = [shape if same_shape else draw(st.tuples(SIDES, SIDES)) for _ in range(count)]
    reference = draw(st.integers(1, 16))
    smallest = draw(st.integers(0, reference))
    largest = draw(st.none() | st.integers(reference, 4 * reference))
    return importances, shapes, reference, RankBounds(smallest, largest)


@pytest.mark.parametrize("choose", CHOICES)
@EVERY
@given(found=layers(), rule=st.sampled_from(RULES))
def test_every_rank_is_within_its_bounds_and_its_matrix(choose, found, rule):
    importances, shapes, reference, bounds = found
    for rank, shape in zip(choose(importances, shapes, reference, bounds, rule=rule), shapes, strict=True):
        largest = min(shape) if bounds.largest is None else min(bounds.largest, *shape)
        assert min(bounds.smallest, largest) <= rank <= largest


@pytest.mark.parametrize("choose", CHOICES)
@EVERY
@given(found=layers(), rule=st.sampled_from(RULES), data=st.data())
def test_permuting_layers_permutes_ranks(choose, found, rule, data):
    importances, shapes, *rest = found
    order = data.draw(st.permutations(range(len(shapes))))
    ranks = choose(importances, shapes, *rest, rule=rule)
    again = choose([importances[i] for i in order], [shapes[i] for i in order], *rest, rule=rule)
    assert again == [ranks[i] for i in order]


@pytest.mark.parametrize("choose", CHOICES)
@EVERY
@given(found=layers(), rule=st.sampled_from(RULES), factor=st.floats(1e-8, 1e8))
def test_scaling_all_gradients_changes_no_rank(choose, found, rule, factor):
    importances, *rest = found
    assert choose([value * factor for value in importances], *rest, rule=rule) == choose(importances, *rest, rule=rule)


@pytest.mark.parametrize("choose", CHOICES)
@EVERY
@given(found=layers(same_shape=True), rule=st.sampled_from(RULES))
def test_among_equal_shapes_more_importance_never_gets_less_rank(choose, found, rule):
    importances, *rest = found
    ranks = choose(importances, *rest, rule=rule)
    ordered = [rank for _, rank in sorted(zip(importances, ranks, strict=True))]
    assert ordered == sorted(ordered)


@EVERY
@given(found=layers(), rule=st.sampled_from(RULES))
def test_the_parameter_budget_is_met_but_for_what_whole_ranks_leave(found, rule):
    """Within half a percent, or all layers are on a bound, or nearer than one rank of layers that go up together."""
    importances, shapes, reference, bounds = found
    ranks = allocate_parameters(importances, shapes, reference, bounds, rule=rule)
    aim = adapter_parameters(shapes, [reference] * len(shapes))
    miss = abs(adapter_parameters(shapes, ranks) - aim)
    if miss <= 0.005 * aim:
        return
    largest = [bounds.clip(2**40, shape) for shape in shapes]
    share = shares_of(importances, shapes, rule)
    earned = [value > 0 for value in share]
    if all(rank == most or not some for rank, most, some in zip(ranks, largest, earned, strict=True)):
        return
    if all(rank == bounds.clip(0, shape) for rank, shape in zip(ranks, shapes, strict=True)):
        return
    # Layers of one share per cost go up in the same moment: no order among them would be fair.
    steps = {}
    for value, shape in zip(share, shapes, strict=True):
        key = float(f"{value / math.sqrt(sum(shape)):.9e}")
        steps[key] = steps.get(key, 0) + sum(shape)
    assert miss <= max(steps.values())


def test_a_budget_of_many_layers_is_met_within_half_a_percent():
    shapes = [(64, 64), (64, 256), (256, 64), (96, 688)] * 12
    importances = [1.0 + 0.37 * (index * 7919 % 101) for index in range(48)]
    aim = adapter_parameters(shapes, [8] * 48)
    for rule in RULES:
        ranks = allocate_parameters(importances, shapes, 8, RankBounds(0, 32), rule=rule)
        assert abs(adapter_parameters(shapes, ranks) / aim - 1) <= 0.005


def test_equal_ranks_are_the_reference_rank_but_in_a_narrower_matrix():
    shapes = [(64, 32), (688, 96), (4, 64)]
    assert allocate([9.0, 1e-3, 2.0], shapes, 8, RankBounds(4, 32), rule=Rule("equal")) == [8, 8, 4]


@EVERY
@given(found=layers(), share=st.floats(0.3, 3.0))
def test_equal_ranks_differ_by_one_at_most_and_the_more_important_layers_have_the_higher(found, share):
    importances, shapes, reference, _ = found
    shapes = [(256, 256)] * len(shapes)
    aim = round(share * adapter_parameters(shapes, [reference] * len(shapes)))
    ranks = allocate_parameters(importances, shapes, reference, RankBounds(0, None), rule=Rule("equal"), aim=aim)
    assert max(ranks) - min(ranks) <= 1
    ordered = [rank for _, rank in sorted(zip(importances, ranks, strict=True))]
    assert ordered == sorted(ordered)
    if len(set(importances)) == len(importances):
        assert abs(adapter_parameters(shapes, ranks) - aim) <= 512 / 2


def test_the_root_and_the_softmax_equal_their_formulas():
    importances, shapes = [1.0, 4.0, 9.0], [(64, 64)] * 3
    assert shares_of(importances, shapes, Rule("sqrt")) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    exponents = [math.exp(value) for value in (0.0, 0.375 / 0.5, 1 / 0.5)]
    expected = [value / sum(exponents) for value in exponents]
    assert shares_of(importances, shapes, Rule("softmax", 0.5)) == pytest.approx(expected)
    assert expected[2] / expected[0] == pytest.approx(math.e**2)


def test_a_cold_softmax_gives_all_to_the_most_important_layer():
    assert shares_of([1.0, 2.0, 3.0], [(8, 8)] * 3, Rule("softmax", 1e-4)) == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("rule", RULES)
def test_a_group_counts_as_its_members_do(rule):
    """Three matrices that share a rank get what each of them would get."""
    shapes = [(64, 64), (96, 64), (64, 64), (64, 64), (64, 64)]
    each = allocate([5.0, 1.0, 2.0, 2.0, 2.0], shapes, 8, RankBounds(1, 64), rule=rule)
    grouped = allocate([5.0, 1.0, 6.0], shapes[:3], 8, RankBounds(1, 64), (1, 1, 3), rule=rule)
    assert grouped == each[:3]
