"""Seconds of a start by phase."""

from gora.runtime.phases import Phases


def test_each_second_is_counted_to_the_innermost_phase_and_none_outside_of_all():
    times = iter([1.0, 3.0, 5.0, 6.0, 10.0, 11.0, 20.0, 22.0])
    phases = Phases(lambda: next(times))
    with phases.within("imports"):  # from 1 to 3
        pass
    with phases.within("adapter"), phases.within("model"):  # from 5 to 11, of which from 6 to 10
        pass
    with phases.within("adapter"):  # from 20 to 22
        pass
    assert phases.text() == "imports 2.0 s, adapter 4.0 s, model 4.0 s"
