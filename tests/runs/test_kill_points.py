"""A run that is killed at any of its file operations and resumed is the unbroken run, bit for bit."""

import json
import os

import pytest

from tests.helpers import forks


def sweep(*arguments):
    from tests.helpers import kill_points

    kill_points.main(*arguments)


def swept(folder, processes, wanted, *more):
    """What became of each point; see `tests/helpers/kill_points.py`."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = forks.call(sweep, folder, processes, wanted, "overwrite" in more, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(points, processes):
    for point in points:
        assert point["killed"], point
        assert point["resumed"] == [0] * processes, point
        assert point["same"], point
        assert not point["left"], point


@pytest.mark.parametrize(("processes", "wanted"), [(1, 6), (2, 3)])
def test_a_run_killed_at_points_of_all_its_stages_resumes_to_the_same_bits(tmp_path, processes, wanted):
    points = swept(tmp_path, processes, wanted)
    assert len(points) == wanted
    check(points, processes)


def test_a_run_killed_while_it_replaces_another_resumes_to_the_same_bits(tmp_path):
    check(swept(tmp_path, 1, 3, "overwrite"), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "more"), [(1, ()), (1, ("overwrite",)), (2, ())], ids=["one", "overwrite", "two"]
)
def test_every_file_operation_of_a_run_is_a_point_it_resumes_from(tmp_path, processes, more):
    points = swept(tmp_path, processes, 0, *more)
    assert len(points) > 100
    check(points, processes)
