"""Memory and time of `gora merge` beside PEFT's load, merge and save, on a sharded model of random weights.

    python scripts/benchmarks/merge.py FOLDER --gigabytes 4 --output docs/data/merge.json

FOLDER takes the model, its adapter and both results (three times the size), and is emptied afterwards. Each way runs in
a process of its own; its memory is the peak above what the process takes after its imports.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gora.models.probe import probe_logits as probe
from gora.models.targets import kind_of
from gora.stages.merge import merge

TOKENIZER = Path(__file__).parents[2] / "gora" / "assets" / "models" / "tiny-6m"
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTH, INNER = 2048, 8192


def make(folder: Path, gigabytes: float, shard_bytes: int) -> dict[str, float]:
    """A Llama-like model in bfloat16, written shard by shard, and a LoRA adapter of rank 16 on all its layers."""
    layers = round(gigabytes * 1e9 / 2 / (4 * WIDTH**2 + 3 * WIDTH * INNER))
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    base, adapter = folder / "base", folder / "adapter"
    config.save_pretrained(base)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(base)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    torch.manual_seed(0)
    noise = (torch.randn(16_777_216) * 0.02).bfloat16()
    shards: list[dict[str, torch.Tensor]] = [{}]
    places, sizes, factors = {}, [0], {}
    for name, value in model.named_parameters():
        size = value.numel() * 2
        if sizes[-1] and sizes[-1] + size > shard_bytes:
            save_file(shards[-1], base / f"model-{len(shards):05}.safetensors", metadata={"format": "pt"})
            shards[-1] = {}
            shards.append({})
            sizes.append(0)
        times = -(-value.numel() // len(noise))
        shards[-1][name] = noise.repeat(times)[: value.numel()].view(value.shape).clone()
        sizes[-1] += size
        places[name] = f"model-{len(shards):05}.safetensors"
        layer = name.removesuffix(".weight")
        if kind_of(layer) in KINDS:
            rows, columns = value.shape
            factors[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(16, columns) / columns**0.5
            factors[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(rows, 16) * 0.01
    save_file(shards[-1], base / f"model-{len(shards):05}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=list(KINDS), base_model_name_or_path=str(base))
    settings.task_type = "CAUSAL_LM"
    settings.save_pretrained(str(adapter))
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    largest = max(value.numel() * 2 for value in model.parameters())
    return {"bytes": sum(sizes), "shards": len(sizes), "largest_shard": max(sizes), "largest_tensor": largest}


def by_peft(folder: Path) -> None:
    """Load, merge, save."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder / "peft", max_shard_size="500MB")


def by_peft_compared(folder: Path) -> None:
    """The same, and logits before and after, as gora compares them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    wrapped = PeftModel.from_pretrained(model, str(folder / "adapter"))
    before = probe(wrapped, tokenizer)
    wrapped.merge_and_unload().save_pretrained(folder / "peft", max_shard_size="500MB")
    del model, wrapped
    gc.collect()
    after = probe(AutoModelForCausalLM.from_pretrained(folder / "peft", dtype=torch.bfloat16), tokenizer)
    assert (after - before).abs().max() < 0.1 * before.abs().max()


def by_gora(folder: Path) -> None:
    """With its comparison and its manifest."""
    merge(folder / "adapter", folder / "gora", dtype="bfloat16")


WAYS = {"gora merge": by_gora, "peft": by_peft, "peft, compared": by_peft_compared}


def measured(way: str, folder: Path) -> dict[str, float]:
    """Seconds, seconds of processor time, and peak bytes of this process above what it took before."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start, busy = _status("VmRSS"), time.monotonic(), time.process_time()
    WAYS[way](folder)
    return {
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - busy,
        "peak_bytes": _status("VmHWM") - before,
    }


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure every way, twice each, in the order of `WAYS` and then the other way round, after the files were read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.way:
        print(json.dumps(measured(options.way, folder)))
        return
    folder.mkdir(parents=True)
    try:
        result = {"model": make(folder, options.gigabytes, 500_000_000), "ways": {}}
        for way in [*WAYS, *reversed(WAYS)]:
            os.sync()
            command = [sys.executable, __file__, str(folder), "--way", way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result["ways"].setdefault(way, []).append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(folder / "gora", ignore_errors=True)
            shutil.rmtree(folder / "peft", ignore_errors=True)
        result["machine"] = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": _processor()}
        result["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
        print(json.dumps(result, indent=2))
        if options.output:
            options.output.write_text(json.dumps(result, indent=2) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
