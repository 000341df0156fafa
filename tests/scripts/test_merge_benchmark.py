"""What docs/serving.md says of a merge's memory and of its result beside PEFT's."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_HALF_A_GIGABYTE = 500_000_000


@pytest.mark.slow
def test_a_merge_of_four_gigabytes_takes_less_than_a_shard_and_500_mb(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / "merge.py"), str(tmp_path / "bench")]
    subprocess.run([*command, "--output", str(tmp_path / "merge.json")], check=True, cwd=tmp_path)
    _check_memory(json.loads((tmp_path / "merge.json").read_text()))


def test_the_figures_in_the_docs_are_those_of_the_data():
    result = json.loads((ROOT / "docs" / "data" / "merge.json").read_text())
    _check_memory(result)
    told = (ROOT / "docs" / "serving.md").read_text()
    for way in result["ways"].values():
        seconds = ", ".join(f"{each['seconds']:.0f}" for each in way)
        processor = ", ".join(f"{each['processor_seconds']:.1f}" for each in way)
        assert f"| {seconds} | {processor} |" in told


def _check_memory(result):
    ours, peft = ([each["peak_bytes"] for each in result["ways"][way]] for way in ("gora merge", "peft"))
    assert result["model"]["bytes"] > 4_000_000_000
    assert max(ours) < result["model"]["largest_shard"] + _HALF_A_GIGABYTE
    assert max(ours) < 0.2 * min(peft)
