"""Exported adapters in mlx-lm itself, on the CPU: log-probabilities are PEFT's.

`scripts/runtimes/build.py` makes the environment; GORA_RUNTIMES is its folder.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from gora.stages.export import export
from gora.stages.merge import merge
from tests.conftest import ROOT
from tests.helpers.mixed_ranks import TOKENS, adapted_llama

PYTHON = Path(os.environ.get("GORA_RUNTIMES", "none")) / "mlx" / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="GORA_RUNTIMES names no mlx")]


def asked(model, adapter=None):
    question = {"model": str(model), "adapter": adapter and str(adapter), "tokens": TOKENS}
    command = [PYTHON, ROOT / "scripts" / "runtimes" / "ask_mlx.py", json.dumps(question)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    return [torch.tensor(row, dtype=torch.float64) for row in answer["log_probabilities"]]


def off(found, reference):
    return max((one - other).abs().max().item() for one, other in zip(found, reference, strict=True))


def test_an_exported_adapter_and_a_merged_model_compute_what_peft_computes(tmp_path):
    folder, with_adapter, without = adapted_llama(tmp_path)
    assert off(asked(folder / "base"), without) < 1e-3
    export(folder / "adapter", "mlx", folder / "out")
    merge(folder / "adapter", folder / "merged")
    exported, merged = asked(folder / "base", folder / "out"), asked(folder / "merged")
    print(f"adapter {off(exported, with_adapter):.2g}, merged {off(merged, with_adapter):.2g}")
    print(f"of an adapter that moves them by {off(with_adapter, without):.2g}")
    assert max(off(exported, with_adapter), off(merged, with_adapter)) < 1e-3 < 0.1 < off(with_adapter, without)
