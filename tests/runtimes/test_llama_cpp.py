"""Exported and merged adapters in llama.cpp itself: log-probabilities are PEFT's; what is not exported is misread.

`scripts/runtimes/build.py` makes the environment; GORA_RUNTIMES is its folder.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gora.adapters.forms import read_lora
from gora.adapters.gguf import write_gguf
from gora.errors import InputError
from gora.stages.export import export
from gora.stages.merge import merge
from tests.conftest import ROOT
from tests.helpers.mixed_ranks import TOKENS, adapted_llama

gguf_models = pytest.importorskip("tests.helpers.gguf_models")
PYTHON = Path(os.environ.get("GORA_RUNTIMES", "none")) / "llama.cpp" / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="GORA_RUNTIMES names no llama.cpp")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = adapted_llama(tmp_path_factory.mktemp("made"))
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(found[0] / "base"), found[0] / "base.gguf")
    return found


def asked(model, adapter=None):
    question = {"model": str(model), "adapter": adapter and str(adapter), "tokens": TOKENS}
    command = [PYTHON, ROOT / "scripts" / "runtimes" / "ask_llama_cpp.py", json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return [torch.tensor(row, dtype=torch.float64) for row in answer["log_probabilities"]]


def off(found, reference):
    return max((one - other).abs().max().item() for one, other in zip(found, reference, strict=True))


def test_an_exported_adapter_computes_what_peft_computes(made, tmp_path):
    folder, with_adapter, without = made
    assert off(asked(folder / "base.gguf"), without) < 1e-3
    assert off(with_adapter, without) > 0.3
    export(folder / "adapter", "llama.cpp", tmp_path / "out")
    difference = off(asked(folder / "base.gguf", tmp_path / "out" / "adapter.gguf"), with_adapter)
    print(f"difference {difference:.2g}, of an adapter that moves them by {off(with_adapter, without):.2g}")
    assert difference < 1e-3


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma"])
def test_adapters_and_merged_models_of_other_families(tmp_path, family):
    folder, with_adapter, without = adapted_llama(tmp_path, family=family)
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "base.gguf")
    assert off(asked(folder / "base.gguf"), without) < 1e-3
    export(folder / "adapter", "llama.cpp", folder / "out")
    difference = off(asked(folder / "base.gguf", folder / "out" / "adapter.gguf"), with_adapter)
    merge(folder / "adapter", folder / "merged")
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(folder / "merged"), folder / "merged.gguf")
    merged = off(asked(folder / "merged.gguf"), with_adapter)
    moved = off(with_adapter, without)
    print(f"{family}: adapter {difference:.2g}, merged {merged:.2g}, of an adapter that moves them by {moved:.2g}")
    assert max(difference, merged) < 1e-3 < 0.1 < moved


def test_dora_is_refused_as_an_adapter_and_right_once_it_is_merged(tmp_path):
    folder, with_adapter, without = adapted_llama(tmp_path, use_dora=True)
    with pytest.raises(InputError) as refused:
        export(folder / "adapter", "llama.cpp", folder / "out")
    assert "use_dora" in str(refused.value)
    assert not (folder / "out").exists()
    merge(folder / "adapter", folder / "merged")
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(folder / "merged"), folder / "merged.gguf")
    difference = off(asked(folder / "merged.gguf"), with_adapter)
    print(
        f"DoRA, merged: difference {difference:.2g}, of an adapter that moves them by {off(with_adapter, without):.2g}"
    )
    assert difference < 1e-3 < 0.1 < off(with_adapter, without)


def test_a_merged_model_computes_what_peft_computes(made, tmp_path):
    folder, with_adapter, _ = made
    merge(folder / "adapter", tmp_path / "merged")
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tmp_path / "merged.gguf")
    difference = off(asked(tmp_path / "merged.gguf"), with_adapter)
    print(f"merged: difference {difference:.2g}")
    assert difference < 1e-3


def test_the_native_form_is_scaled_wrongly_as_the_rules_say(made, tmp_path):
    folder, with_adapter, _ = made
    native = read_lora(folder / "adapter")
    config = AutoModelForCausalLM.from_pretrained(folder / "base").config
    write_gguf(native, config, tmp_path / "native.gguf")
    assert off(asked(folder / "base.gguf", tmp_path / "native.gguf"), with_adapter) > 0.05
