"""A fault in any phase ends a run with one message, and the resumed run is the unbroken one, bit for bit."""

import json
import os

import pytest

from tests.helpers import forks

# What the message says, and the number of the newest checkpoint that has to be left.
EXPECTED = {
    "rows": ("crash", "ValueError: a tokenizer broke", None),
    "pass": ("crash", "RuntimeError: a kernel broke", None),
    "pass, signal": ("interrupted", "Stopped by signal 15.", None),
    "plan": ("disk-full", "No space left on device", None),
    "start": ("crash", "KeyError: 'lora_A'", None),
    "step": ("crash", "ValueError: a library broke", 1),
    "step, signal": ("interrupted", "checkpoint-1 holds step 1 of 2; add --resume", 1),
    "checkpoint": ("disk-full", "No space left on device", 1),
    "saving": ("not-saved", "could not be saved as usual (TypeError: not serialisable)", 2),
    "evaluation": ("crash", "AssertionError: shapes differ", 2),
    "evaluation, signal": ("interrupted", "Stopped by signal 15.", 2),
    "merge": ("crash", "RuntimeError: dtypes differ", 2),
}


def sweep(folder, processes):
    from tests.helpers import faults

    faults.main(folder, processes)


@pytest.fixture(scope="module", params=[pytest.param(1, id="one"), pytest.param(2, id="two", marks=pytest.mark.slow)])
def faults(request, tmp_path_factory):
    """What became of each fault; see `tests/helpers/faults.py`."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = forks.call(sweep, tmp_path_factory.mktemp("f"), request.param, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return request.param, {report["fault"]: report for report in reports}


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_told_once_and_resumed_to_the_bits_of_an_unbroken_run(faults, fault):
    processes, reports = faults
    report, (code, message, newest) = reports[fault], EXPECTED[fault]
    said = "".join(report["said"])
    assert report["code"] == (143 if code == "interrupted" else 1), said
    assert said.count("gora: ") == 1
    assert message in said.replace("\n", " ")
    assert "Traceback" not in said
    assert "UserWarning" not in said
    assert report["failure"]["code"] == code
    assert report["failure"]["exit_code"] == report["code"]
    # Another process may say something before it is ended as well.
    ends = report["log"].rstrip().endswith if processes == 1 else report["log"].__contains__
    assert ends(f"error: {report['failure']['message']}")
    # A full disk is foreseen where gora itself writes; what `plan` breaks stands for a library that it does not watch.
    foreseen = code != "crash" and fault != "plan"
    assert ("Traceback (most recent call last)" in report["log"]) != foreseen
    assert newest is None or report["checkpoints"][-1] == f"checkpoint-{newest}"
    assert report["resumed"] == [0] * processes
    assert report["differing"] == []
    assert report["merged"]
    assert not report["failure after"]
