"""Trainings that are compared take their steps in turn, and one that ends early keeps nobody waiting."""

import math
import sys
import threading

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from turns import Turns


def steps_of(count, *, until=math.inf, fails=()):
    """The order of steps, and the seconds that were noted for each, where each takes so many at most."""
    order, seconds, rounds = [], {name: [] for name in count}, []
    turns = Turns(list(count), until=until, told=lambda: rounds.append(len(order)))

    def take_steps(name):
        with turns.taking_part(name, seconds[name], lambda: None) as turn:
            for _ in range(count[name]):
                if name in fails:
                    raise RuntimeError("a way that does not work")
                order.append(name)
                if turn.end():
                    return

    def run(name):
        if name in fails:
            with pytest.raises(RuntimeError):
                take_steps(name)
        else:
            take_steps(name)

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in count]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return "".join(order), {name: len(each) for name, each in seconds.items()}


def test_each_takes_a_step_in_every_round_and_another_one_begins_each():
    order, steps = steps_of({"a": 4, "b": 4, "c": 4})
    assert order == "abcbcacababc"
    assert steps == {"a": 4, "b": 4, "c": 4}


def test_one_that_ends_early_or_fails_is_left_out_of_later_rounds():
    order, steps = steps_of({"a": 4, "b": 2, "c": 4, "d": 3}, fails=("d",))
    assert order == "abcbcacaac"
    assert steps == {"a": 4, "b": 2, "c": 4, "d": 0}


def test_no_round_begins_when_the_time_is_over():
    order, steps = steps_of({"a": 9, "b": 9}, until=-1.0)
    assert order == "ab"
    assert steps == {"a": 1, "b": 1}
