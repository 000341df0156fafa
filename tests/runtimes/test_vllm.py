"""Exported adapters in vLLM itself, on the CPU: log-probabilities are PEFT's in the native and in the uniform form.

`scripts/runtimes/build.py` makes the environment; GORA_RUNTIMES is its folder.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from gora.stages.export import export
from tests.conftest import ROOT
from tests.helpers.mixed_ranks import TOKENS, adapted_llama

PYTHON = Path(os.environ.get("GORA_RUNTIMES", "none")) / "vllm" / "bin" / "python"
PROMPTS = [row[:length] for row in TOKENS for length in range(1, len(row) + 1)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="GORA_RUNTIMES names no vLLM")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return adapted_llama(tmp_path_factory.mktemp("made"), width=128)


def asked(folder, adapter, rank):
    question = {"model": str(folder / "base"), "adapter": adapter and str(adapter), "rank": rank, "tokens": PROMPTS}
    command = [PYTHON, ROOT / "scripts" / "runtimes" / "ask_vllm.py", json.dumps(question)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["log_probabilities"]


def off(found, reference):
    """The largest difference for the twenty tokens that vLLM finds most likely after each prompt."""
    ends = [log[length - 1] for log in reference for length in range(1, len(log) + 1)]
    return max(
        abs(told - end[int(token)].item())
        for answer, end in zip(found, ends, strict=True)
        for token, told in answer.items()
    )


@pytest.mark.parametrize("runtime", ["vllm@0.32", "vllm"])
def test_an_exported_adapter_computes_what_peft_computes(made, tmp_path, runtime):
    folder, with_adapter, without = made
    export(folder / "adapter", runtime, tmp_path / "out")
    found = asked(folder, tmp_path / "out", 16)
    print(f"difference {off(found, with_adapter):.2g}, without the adapter {off(found, without):.2g}")
    assert off(found, with_adapter) < 1e-3 < 0.1 < off(found, without)
