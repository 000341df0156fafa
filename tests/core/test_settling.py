"""When gradients count as settled, on synthetic importances."""

import math

import pytest

from gora.core.settling import importances_settled, start_settled

LAYERS = ("a", "b", "c")


def stop(importance, *, jump=1, most=64, tolerance=0.1):
    """After how many micro-batches the pass ends; None where it never does."""
    seen = {}
    for count in range(jump, most + 1, jump):
        seen[count] = {name: importance(number + 1, count) for number, name in enumerate(LAYERS)}
        if importances_settled(seen, tolerance):
            return count
    return None


STATIONARY = {
    "no noise": lambda layer, count: layer,
    "some noise": lambda layer, count: layer * math.sqrt(1 + 1 / count),
    "noise that averages out": lambda layer, count: layer * math.sqrt(0.1 + 1 / count),
}
DRIFTING = {
    "straight up": lambda layer, count: layer * (count + 1) / 2,
    "ever faster": lambda layer, count: layer * sum(1.3**each for each in range(count)) / count,
    "dying away": lambda layer, count: layer / count,
    "one layer alone": lambda layer, count: layer if layer < 3 else (count + 1) / 2,
}


@pytest.mark.parametrize("jump", [1, 2, 4])
@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_gradients_settle_soon(name, jump):
    assert 3 <= stop(STATIONARY[name], jump=jump) <= 10


@pytest.mark.parametrize("jump", [1, 2, 4])
@pytest.mark.parametrize("name", DRIFTING)
def test_drifting_gradients_never_settle(name, jump):
    assert stop(DRIFTING[name], jump=jump) is None


def test_two_processes_stop_where_one_does_or_a_micro_batch_later():
    for importance in STATIONARY.values():
        one, two = stop(importance), stop(importance, jump=2)
        assert 0 <= two - one <= 1


def test_the_first_look_that_counts_is_the_third():
    assert stop(lambda layer, count: 1.0) == 3


def test_a_layer_without_gradients_settles_and_one_that_gets_some_late_does_not():
    assert stop(lambda layer, count: 0.0 if layer == 1 else 1.0) == 3
    assert not importances_settled({1: {"a": 0.0}, 2: {"a": 0.0}, 3: {"a": 1.0}}, 0.1)


def test_nan_never_settles():
    assert stop(lambda layer, count: math.nan if layer == 2 else 1.0) is None


def test_a_smaller_tolerance_takes_longer():
    importance = STATIONARY["noise that averages out"]
    assert stop(importance, tolerance=0.02) > stop(importance, tolerance=0.2)


@pytest.mark.parametrize(
    ("ranks", "cosine", "ratio", "settled"),
    [
        ({"a": 8, "b": 30}, 0.95, 1.0, True),
        ({"a": 9, "b": 32}, 0.95, 0.8, True),
        ({"a": 10, "b": 30}, 0.95, 1.0, False),
        ({"a": 8, "b": 36}, 0.95, 1.0, False),
        ({"a": 8, "b": 30}, 0.85, 1.0, False),
        ({"a": 8, "b": 30}, 0.95, 2.0, False),
        ({"a": 8, "b": 30}, 0.95, 0.5, False),
    ],
)
def test_a_start_has_settled_when_ranks_direction_and_size_have(ranks, cosine, ratio, settled):
    assert start_settled(ranks, {"a": 8, "b": 30}, cosine, ratio, 0.1) is settled
