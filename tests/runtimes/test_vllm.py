"""Exported adapters in vLLM itself, on the CPU: log-probabilities are PEFT's in the native and in the uniform form,
and `gora eval` gives the answers that transformers gives.

`scripts/runtimes/build.py` makes the environment; GORA_RUNTIMES is its folder. GORA_SMOLLM2 is a folder with
SmolLM2-135M-Instruct in safetensors.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gora.stages.export import export
from tests.conftest import ROOT
from tests.helpers.mixed_ranks import TOKENS, adapted_llama

PYTHON = Path(os.environ.get("GORA_RUNTIMES", "none")) / "vllm" / "bin" / "python"
SMOLLM2 = os.environ.get("GORA_SMOLLM2", "")
PROMPTS = [row[:length] for row in TOKENS for length in range(1, len(row) + 1)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="GORA_RUNTIMES names no vLLM")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return adapted_llama(tmp_path_factory.mktemp("made"), width=128)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """An adapter on SmolLM2 with ranks from 1 to 32, and layers without one, that changes most answers."""
    folder = tmp_path_factory.mktemp("talking")
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    kinds = [f"self_attn.{kind}_proj" for kind in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]
    names = [f"model.layers.{block}.{kind}" for block in range(model.config.num_hidden_layers) for kind in kinds]
    ranks = {name: (0, 4, 1, 16, 8, 3, 32)[number % 7] for number, name in enumerate(names)}
    others = {name: rank for name, rank in ranks.items() if rank not in (0, 8)}
    config = LoraConfig(
        r=8,
        lora_alpha=16 * 8**0.5,
        target_modules=[name for name, rank in ranks.items() if rank],
        rank_pattern=others,
        alpha_pattern={name: 16 * rank**0.5 for name, rank in others.items()},
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.004)
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not SMOLLM2, reason="GORA_SMOLLM2 names no model")
def test_gora_eval_gives_the_answers_of_transformers_but_for_ties(talking, tmp_path):
    asking = ["eval", str(talking), "--task", "gsm8k", "--data", "builtin:gsm8k/test.jsonl", "--both"]
    asking += ["--limit", "12", "--max-new-tokens", "48"]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    for backend, python in (("vllm", str(PYTHON)), ("hf", sys.executable)):
        command = [python, "-m", "gora", *asking, "--backend", backend, "--output", str(tmp_path / backend)]
        environment = {
            **os.environ,
            **own,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "vllm" / "results.json").read_text())
    assert results["tasks"]["gsm8k"]["trained"]["adapter_form"] == "native"
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    base = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    models = {"base": base.eval(), "trained": PeftModel.from_pretrained(copy.deepcopy(base), str(talking)).eval()}
    same = {}
    for side, model in models.items():
        rows = {
            backend: [
                json.loads(line)
                for line in (tmp_path / backend / "evaluation" / f"gsm8k-{side}" / "rows.jsonl")
                .read_text()
                .splitlines()
            ]
            for backend in ("hf", "vllm")
        }
        pairs = list(zip(rows["hf"], rows["vllm"], strict=True))
        same[side] = sum(one["output"] == other["output"] for one, other in pairs)
        for one, other in pairs:
            if one["output"] != other["output"]:
                assert gap_where_they_part(model, tokenizer, one, other) < 1e-3
    print(f"the same answers: {same} of 12")
    assert min(same.values()) >= 10
    assert (tmp_path / "hf" / "evaluation" / "gsm8k-base" / "rows.jsonl").read_text() != (
        tmp_path / "hf" / "evaluation" / "gsm8k-trained" / "rows.jsonl"
    ).read_text()


def gap_where_they_part(model, tokenizer, one, other):
    """How much likelier the first token is in which two answers differ, for transformers."""
    turns = [{"role": "user", "content": one["prompt"]}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    first, second = (tokenizer(each["output"], add_special_tokens=False)["input_ids"] for each in (one, other))
    shared = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    logits = model(input_ids=torch.tensor([[*prompt, *first[:shared]]])).logits[0, -1].log_softmax(-1)
    return abs(logits[first[shared]] - logits[second[shared]]).item()


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
