"""Processes that wait for others, end with others, and end: real ones, and what they leave."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from gora.errors import GoraError, InputError
from gora.runtime import meeting, world
from gora.runtime.scratch import Scratch, make_locked, new_path, sweep
from gora.runtime.waiting import Wait
from tests.conftest import ROOT
from tests.helpers.environment import clean_environment

LONG_TRAINING = (
    "data.train.max_rows=16",
    "data.eval.max_rows=2",
    "data.max_length=64",
    "evaluation.steps=null",
    "train.max_steps=100000",
    "train.epochs=100000",
    "train.batch_size=2",
    "train.micro_batch_size=1",
    "train.log_steps=1",
    "train.save_steps=null",
)


def worker(*scenario, **environment):
    """A process of `tests/helpers/workers.py`."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "workers.py"), *scenario]
    environment = clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **environment)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment, text=True, **pipes)


@pytest.fixture
def port():
    """A port of this host at which nobody listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


# Waiting for others


@pytest.mark.parametrize(
    ("rank", "number", "line"),
    [("0", signal.SIGINT, "waiting for 1 of 2 processes"), ("1", signal.SIGTERM, "waiting for process 0 of 2")],
)
def test_a_process_that_is_alone_says_what_it_waits_for_and_hears_signals(port, rank, number, line):
    with worker("joining", RANK=rank, WORLD_SIZE="2", MASTER_PORT=port) as waiting:
        said = waiting.stdout.readline()
        assert said.startswith(f"{line} at localhost:{port} (RANK, WORLD_SIZE are set in the environment); 14 min 5")
        assert said.endswith(" s left\n")
        waiting.send_signal(number)
        _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 128 + number
    assert errors.startswith(f"gora: Stopped by signal {number:d}.")


def test_processes_that_were_started_by_hand_meet_in_any_order(port):
    with (
        worker("joining", RANK="1", WORLD_SIZE="2", MASTER_PORT=port) as one,
        worker("joining", RANK="0", WORLD_SIZE="2", MASTER_PORT=port) as other,
    ):
        said = [process.communicate(timeout=120) for process in (one, other)]
    assert [out.splitlines()[-1] for out, _ in said] == ["joined 2"] * 2, said
    assert [process.returncode for process in (one, other)] == [0, 0]


@pytest.fixture
def impatient(monkeypatch, port):
    monkeypatch.setattr(meeting, "PATIENCE", 0.3)
    monkeypatch.setattr(os, "environ", clean_environment(MASTER_ADDR="localhost", MASTER_PORT=port, WORLD_SIZE="3"))
    return port


def test_who_did_not_come_is_counted_and_the_variables_that_speak_of_it_are_named(impatient):
    advice = "WORLD_SIZE are set in the environment: if nothing has started several processes, unset them"
    with pytest.raises(GoraError, match=f"2 of 3 processes did not come to localhost:{impatient} within .*{advice}"):
        meeting.meet(0, 3)
    with pytest.raises(GoraError, match=f"Process 0 of 3 did not come to localhost:{impatient}"):
        meeting.meet(1, 3)


def test_a_port_that_another_run_has_taken_is_named(impatient):
    with socket.socket() as taken:
        taken.bind(("", int(impatient)))
        taken.listen()
        with pytest.raises(
            GoraError, match=f"did not meet at localhost:{impatient}: .*MASTER_PORT is taken, set another"
        ):
            meeting.meet(0, 3)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
    ],
)
def test_variables_that_no_launcher_sets_are_refused(monkeypatch, variables, named):
    monkeypatch.setattr(os, "environ", clean_environment(**variables))
    with pytest.raises(InputError, match=f"{named}: .*unset it to run in one process"):
        world.find()


def test_a_call_that_blocks_is_left_when_the_wait_is_over_and_its_errors_arrive():
    come = threading.Event()
    with Wait(str, 0.1) as wait, pytest.raises(TimeoutError):
        wait.call(come.wait)
    come.set()
    with Wait(str, 60) as wait:
        assert wait.call(come.wait)
        with pytest.raises(ValueError, match="two"):
            wait.call(lambda: int("two"))


# Ending with others


def test_a_process_whose_starter_has_gone_already_stops_before_it_begins(tmp_path):
    with subprocess.Popen(["true"]) as gone:
        pass
    command = [sys.executable, "-m", "gora", "run", "quickstart"]
    environment = clean_environment(PYTHONPATH=str(ROOT), GORA_STARTER=str(gone.pid))
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Stopped by signal 15" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_was_killed_has_its_run_stop_after_a_step_with_a_checkpoint(tmp_path):
    settings = [part for setting in LONG_TRAINING for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "gora",
        "compare",
        "quickstart",
        "--methods",
        "lora",
        "--output",
        "made",
        *settings,
    ]
    with open(tmp_path / "output.txt", "w") as output:
        comparison = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(PYTHONPATH=str(ROOT)), stdout=output)
    folder = tmp_path / "made" / "runs" / "lora_seed=0"
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert comparison.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
        time.sleep(0.1)
    (run,) = psutil.Process(comparison.pid).children()
    comparison.kill()
    comparison.wait()
    gone, _ = psutil.wait_procs([run], timeout=60)
    assert gone == [run]
    assert list((folder / "checkpoints").iterdir())
    assert "gora: Stopped by signal 15." in (folder / "output.txt").read_text()


# Ending


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_ends_with_its_own_code_whatever_its_threads_do(code):
    with worker("leaving", str(code)) as leaving:
        _, errors = leaving.communicate(timeout=60)
    assert (leaving.returncode, errors) == (code, "")


# What a killed process leaves


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the system."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_folders_of_processes_that_were_killed_are_deleted_by_the_next_that_makes_one(temporary):
    with worker("scratch", TMPDIR=str(temporary)) as user, worker("scratch", TMPDIR=str(temporary)) as killed:
        in_use, left = (process.stdout.readline().strip() for process in (user, killed))
        assert os.path.dirname(left) == str(temporary)
        os.mkdir(os.path.join(left, "locked up"))
        os.chmod(os.path.join(left, "locked up"), 0)
        killed.kill()
        killed.wait()
        assert os.path.exists(left)
        with Scratch("adapter") as own:
            sweep()
            assert sorted(os.listdir(temporary)) == sorted(map(os.path.basename, (in_use, own)))
        user.communicate(timeout=60)
    assert not os.listdir(temporary)


def test_a_folder_of_another_host_or_by_another_name_stays(temporary):
    for name in ("gora-launch-elsewhere.example-1-0f", "gora-mine", "other"):
        (temporary / name).mkdir()
    os.close(make_locked(new_path("program")))
    sweep()
    assert sorted(os.listdir(temporary)) == ["gora-launch-elsewhere.example-1-0f", "gora-mine", "other"]


def test_a_launcher_that_was_killed_takes_its_processes_along_and_the_next_one_clears_up_after_it(temporary):
    """Processes that end no step; those that do are asked in `test_distributed`."""
    with worker("unending", TMPDIR=str(temporary)) as launcher:
        assert [launcher.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        processes = psutil.Process(launcher.pid).children()
        launcher.kill()
        # They have been asked once, to stop after their step.
        assert [launcher.stderr.readline()[:24] for _ in range(2)] == ["\n", "Stopping after this step"]
        assert len(processes) == 2
        for process in processes:
            process.kill()
    (left,) = os.listdir(temporary)
    assert left.startswith("gora-launch-")
    with worker("joining", TMPDIR=str(temporary)) as next_one:
        out, errors = next_one.communicate(timeout=120)
    assert (next_one.returncode, errors) == (0, "")
    assert out.splitlines() == ["joined 2"] * 2
    assert not os.listdir(temporary)


ORPHAN = """
import os, sys, time
import gora.runtime.starter as starter
from gora.runtime.interrupt import stopping_between_steps
starter._GRACE = float(sys.argv[1])
starter.end_with_starter()
with stopping_between_steps() as request:
    print("begun", flush=True)
    while not request:
        time.sleep(0.01)
    print("asked", flush=True)
    # One more for each thread of the starter, as the kernel sends them; and then it hears nothing any more.
    time.sleep(1.2)
    os.kill(os.getpid(), 15)
    print("saved", flush=True)
    while len(sys.argv) > 2:
        time.sleep(0.01)
"""
STARTER = """
import os, subprocess, sys
from gora.runtime.starter import bound_to_this_process
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, **bound_to_this_process()})
sys.stdin.read()
"""


@pytest.mark.parametrize("more", [("180",), ("0", "stuck")], ids=["it saves", "it is stuck"])
def test_a_process_whose_starter_was_killed_saves_once_and_ends_for_certain(more):
    environment = clean_environment(PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", STARTER, ORPHAN, *more]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        assert starter.stdout.readline() == "begun\n"
        starter.kill()
        # The pipe closes when the orphan, which holds its other end, has ended.
        lines = starter.stdout.read().splitlines()
    assert lines == ["asked", "saved"] if more == ("180",) else lines[0] == "asked"
