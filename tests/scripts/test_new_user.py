"""A new user on a machine with only Python: the wheel and what it asks for from the index, then one's own rows.

An index that answers is needed (`PIP_INDEX_URL`, `PIP_FIND_LINKS`); everything else is without a network.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.scripts.conftest import run
from tests.stages.test_init import KINDS, TINY_NAME, WRONG, save

pytestmark = pytest.mark.slow

SMALL = (
    "gora.steps=2",
    "gora.gamma=0.05",
    "train.max_steps=2",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.learning_rate=1e-3",
)


@pytest.fixture(scope="module")
def machine(dist, tmp_path_factory):
    """A folder with nothing of ours but an environment into which the wheel was installed, with its libraries."""
    folder = tmp_path_factory.mktemp("machine")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    (wheel,) = dist.glob("*.whl")
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    command = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", *pinned, wheel]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode and re.search("No matching distribution|ConnectionError|Temporary failure", done.stderr):
        pytest.skip(f"no index: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copy(ROOT / "tests" / "helpers" / "several.py", folder)
    return folder


def environment(machine):
    return {
        "PATH": f"{machine / 'venv' / 'bin'}:/usr/bin:/bin",
        "HOME": str(machine),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "HF_HUB_OFFLINE": "1",
    }


def typed(machine, *lines, cwd):
    """Commands one after the other; code and both streams of each."""
    command = [machine / "venv" / "bin" / "python", machine / "several.py", json.dumps([list(each) for each in lines])]
    return json.loads(run(*command, cwd=cwd, env=environment(machine)).splitlines()[-1])


def test_the_first_command_trains_a_better_model(machine, tmp_path):
    said = run("gora", "run", "quickstart", cwd=tmp_path, env=environment(machine))
    base, trained = map(float, re.search(r"([\d.]+) with the base model, ([\d.]+) with the adapter", said).groups())
    assert trained < base - 0.5
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()


def test_rows_as_people_have_them_are_trained_on_without_an_edit(machine, tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    lines = []
    for number, (row, _) in enumerate(KINDS.values()):
        save(tmp_path / f"rows{number}.jsonl", row)
        lines += [["init", TINY_NAME, f"rows{number}.jsonl"], ["run", f"rows{number}.yaml", *settings]]
    for line, (code, out, err) in zip(lines, typed(machine, *lines, cwd=tmp_path), strict=True):
        assert code == 0, f"{line}\n{out}{err}"
    for number in range(len(KINDS)):
        assert (tmp_path / "runs" / f"rows{number}" / "adapter" / "adapter_model.safetensors").exists()


def test_what_cannot_be_used_is_answered_with_what_to_do(machine, tmp_path):
    lines, expected = [], []
    for number, (make, message) in enumerate(WRONG.values()):
        (folder := tmp_path / str(number)).mkdir()
        lines.append(["init", TINY_NAME, make(folder), "--output", f"{number}.yaml"])
        expected.append(message)
    for arguments, message in (
        (["run", "quickstrat"], "quickstart"),
        (["run", "quickstart", "--set", "train.learning_rte=1e-3"], "did you mean 'learning_rate'"),
        (["run", "quickstart", "--set", "train.epochs=many"], "train.epochs"),
        (["run", "quickstart", "--set", "model.name=nowhere/at-all"], "nowhere/at-all"),
        (["run", "quickstart", "--set", "adapter.targets=[q_prj]"], "did you mean 'q_proj'"),
        (["train", "quickstart"], "no such plan file"),
        (["eval", "runs/none", "--task", "gsm8k", "--data", "builtin:gsm8k/test.jsonl"], "runs/none"),
        (["merge", "runs/none", "--output", "merged"], "runs/none"),
        (["export", ".", "--for", "vllm", "--output", "exported"], "adapter_config.json"),
    ):
        lines.append(arguments)
        expected.append(re.escape(message))
    assert len(lines) > 20
    for line, message, (code, out, err) in zip(lines, expected, typed(machine, *lines, cwd=tmp_path), strict=True):
        assert code == 2, f"{line}\n{out}{err}"
        assert err.startswith("gora: ") and "Traceback" not in out + err, line
        assert re.search(message, err) or re.search(message, " ".join(err.split())), f"{line}\n{err}"
