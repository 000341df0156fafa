"""Comparisons: real runs in processes of their own, what is repeated and what is not, and the table's arithmetic."""

import json
import os
import subprocess
import sys

import pytest

from gora.errors import InputError
from gora.report.comparison import Outcome, markdown, summarize
from gora.stages.compare import compare

SMALL = (
    "data.train.max_rows=32",
    "data.eval.max_rows=6",
    "data.max_length=128",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.micro_batch_size=2",
    "train.batch_size=4",
    "train.max_steps=3",
    "train.log_steps=1",
)


def gora(*arguments, cwd):
    command = [sys.executable, "-m", "gora", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)


def test_methods_are_compared_in_processes_of_their_own_and_finished_runs_are_not_repeated(tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = ("compare", "quickstart", "--methods", "gora,lora", "--output", "made", "--jobs", "2", *settings)
    first = gora(*arguments, "--vary", "data.max_length=128,8", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = {row["label"]: row for row in json.loads((tmp_path / "made" / "comparison.json").read_text())}
    assert set(rows) == {f"{name} max_length={length}" for name in ("gora", "lora") for length in (128, 8)}
    for name in ("gora", "lora"):
        row = rows[f"{name} max_length=128"]
        folder = tmp_path / "made" / "runs" / f"{name}_max_length=128_seed=0"
        result = json.loads((folder / "evaluation.json").read_text())
        assert row["final"] == result["loss"]["final"]
        assert row["trainable"] == result["trainable_parameters"] > 0
        assert row["seeds"] == [0]
        failed = rows[f"{name} max_length=8"]
        assert failed["final"] is None
        assert "leaves no token to train on" in failed["failures"][0]
    assert (tmp_path / "made" / "comparison.png").stat().st_size > 1000
    table = (tmp_path / "made" / "comparison.md").read_text()
    assert "| failed: seed 0: " in table
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "runs").glob("*/evaluation.json")}
    assert len(before) == 2
    once_more = gora(*arguments, "--vary", "data.max_length=128", cwd=tmp_path)
    assert "compare   2 runs, 2 of them finished before" in once_more.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_folder_with_other_settings_and_unknown_methods_are_refused(tmp_path):
    with pytest.raises(InputError, match="--methods: loraa is none of gora, lora"):
        compare("quickstart", (), methods=["loraa"], seeds=[0], destination=tmp_path)
    with pytest.raises(InputError, match=r"section\.key=v1,v2 is expected"):
        compare("quickstart", (), methods=["lora"], seeds=[0], vary=["seed"], destination=tmp_path)
    folder = tmp_path / "runs" / "lora_seed=0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: {name: other}\n")
    with pytest.raises(InputError, match="holds a run of other settings"):
        compare("quickstart", (), methods=["lora"], seeds=[0], destination=tmp_path)


def outcome(label, seed, final, failure=None):
    result = {
        "loss": {"initial": 3.0, "final": final},
        "trainable_parameters": 100,
        "seconds": 2.0,
        "peak_bytes": {"host": 10**9},
    }
    return Outcome(label, seed, failure, {} if failure else result, [(1, final)])


def test_rows_hold_mean_and_sample_deviation_and_a_failed_seed_is_named():
    runs = [outcome("a", 0, 1.0), outcome("a", 1, 2.0), outcome("b", 0, 1.2), outcome("b", 1, 0, "it broke")]
    first, second = summarize(runs)
    assert (first.final, first.seeds) == (1.5, (0, 1))
    assert first.deviation == pytest.approx(0.5**0.5)
    assert (second.final, second.deviation, second.seeds) == (1.2, 0.0, (0,))
    assert second.failures == ("seed 1: it broke",)
    lines = markdown([first, second]).splitlines()
    assert "*1.5000 ± 0.7071*" in lines[2]
    assert "**1.2000 ± 0.0000**" in lines[3]
    assert "failed: seed 1: it broke" in lines[4]
