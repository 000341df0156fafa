"""Exported and merged adapters in llama.cpp itself: log-probabilities are PEFT's; what is not exported is misread.

`scripts/runtimes/build.py` makes the environment; GORA_RUNTIMES is its folder.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gora.adapters.forms import read_lora
from gora.adapters.gguf import write_gguf
from gora.stages.export import export
from gora.stages.merge import merge
from tests.conftest import ROOT, TINY

gguf_models = pytest.importorskip("tests.helpers.gguf_models")
PYTHON = Path(os.environ.get("GORA_RUNTIMES", "none")) / "llama.cpp" / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="GORA_RUNTIMES names no llama.cpp")]
TOKENS = [[5, 9, 200, 31, 7, 1033, 12, 90, 4, 77, 300, 8], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ranks from 1 to 4 times the reference, scales of GoRA, layers without a rank; PEFT's log-probabilities."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "base")
    kinds = [f"self_attn.{kind}_proj" for kind in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]
    names = [f"model.layers.{block}.{kind}" for block in range(3) for kind in kinds]
    ranks = {name: (0, 4, 1, 16, 8, 3, 4)[number % 7] for number, name in enumerate(names)}
    config = LoraConfig(
        r=4,
        lora_alpha=16 * 4**0.5,
        target_modules=[name for name, rank in ranks.items() if rank],
        rank_pattern={name: rank for name, rank in ranks.items() if rank not in (0, 4)},
        alpha_pattern={name: 16 * rank**0.5 for name, rank in ranks.items() if rank not in (0, 4)},
    )
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    wrapped.save_pretrained(str(folder / "adapter"))
    gguf_models.write_model(model, folder / "base.gguf")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), str(folder / "adapter"))
    return folder, expected(adapted.eval()), expected(model.eval())


def expected(model):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1) for row in TOKENS]


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


def test_a_merged_model_computes_what_peft_computes(made, tmp_path):
    folder, with_adapter, _ = made
    merge(folder / "adapter", tmp_path / "merged")
    gguf_models.write_model(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tmp_path / "merged.gguf")
    assert off(asked(tmp_path / "merged.gguf"), with_adapter) < 1e-3


def test_the_native_form_is_scaled_wrongly_as_the_rules_say(made, tmp_path):
    folder, with_adapter, _ = made
    native = read_lora(folder / "adapter")
    config = AutoModelForCausalLM.from_pretrained(folder / "base").config
    write_gguf(native, config, tmp_path / "native.gguf")
    assert off(asked(folder / "base.gguf", tmp_path / "native.gguf"), with_adapter) > 0.05
