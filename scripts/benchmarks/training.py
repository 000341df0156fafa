"""Training steps on one GPU: PEFT with transformers' Trainer as documented, with Liger, and gora's.

    python scripts/benchmarks/training.py --rows math=gsm8k/train.jsonl --output training.json

One model with random bfloat16 weights (an 8B shape, or SmolLM2-135M's) stays on the GPU; every way puts its own LoRA
round it and trains on the same token ids: rows of one length, or of the lengths that the rows of a file have with the
model of the quickstart's tokenizer. A rate counts tokens of rows, padding left out, over the median of the last steps;
memory is the peak that torch allocated, the model included.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
from array import array
from pathlib import Path
from typing import Any

import torch
import training_ways
from peft import LoraConfig, get_peft_model
from training_ways import WAYS, Clock
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from gora.data import Encoded, Examples

ROOT = Path(__file__).resolve().parents[2]
ROTARY = modeling_llama.apply_rotary_pos_emb
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "tiny": {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


def main() -> None:
    """Measure every setting in every way; print a table, write JSON after each."""
    arguments = _arguments()
    training_ways.RECORDING = arguments.recording
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        model = make_model(shape, device)
        weights = sum(value.numel() for value in model.parameters()) - model.get_input_embeddings().weight.numel()
        for name, targets, rows, micro, batch in settings(shape, arguments):
            for way in arguments.ways:
                measured = attempt(way, model, targets, rows, micro, batch, arguments, device)
                row = {"shape": shape, "setting": name, "way": way, **measured}
                if "rate" in row:
                    row["tflops"] = 4 * weights * row["rate"] / 1e12
                results.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                facts = {"card": card(device), "versions": versions(), "command": sys.argv[1:]}
                arguments.output.write_text(json.dumps({**facts, "results": results}, indent=1))
        del model
        clear()
    print(table(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("training.json"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8b", "135m"])
    parser.add_argument("--rows", nargs="*", default=[], help="NAME=FILE of JSON lines; question or prompt, and answer")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--settings", nargs="*", default=None, help="only those whose name contains one of these")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps")
    parser.add_argument("--recording", type=int, default=12, help="steps before them where passes are recorded")
    parser.add_argument("--counted", type=int, default=4, help="the last of them, of which a rate is the median")
    return parser.parse_args()


def make_model(shape: str, device: torch.device) -> LlamaForCausalLM:
    """A Llama of the shape with random weights."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    config = LlamaConfig(max_position_embeddings=8192, rope_parameters=rope, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    return model.requires_grad_(False)


def settings(shape: str, arguments: argparse.Namespace) -> list[tuple[str, list[str], Examples, int, int]]:
    """Name, targets, rows, rows of a micro-batch and of a step."""
    vocabulary = SHAPES[shape]["vocab_size"]
    mixed = {name: lengths(Path(path)) for name, _, path in (each.partition("=") for each in arguments.rows)}
    found = [
        ("attention, 4 x 1024", ATTENTION, fixed(1024, vocabulary), 4, 16),
        ("attention, 1 x 4096", ATTENTION, fixed(4096, vocabulary), 1, 4),
        ("all-linear, 4 x 1024", ALL_LINEAR, fixed(1024, vocabulary), 4, 16),
    ]
    for name, pairs in mixed.items():
        found.append((f"attention, {name}", ATTENTION, drawn(pairs, vocabulary), 8, 64))
        found.append((f"all-linear, {name}", ALL_LINEAR, drawn(pairs, vocabulary), 8, 64))
    wanted = arguments.settings
    return [each for each in found if wanted is None or any(part in each[0] for part in wanted)]


def lengths(path: Path) -> list[tuple[int, int]]:
    """Tokens of prompt and of answer of each row of a file."""
    if path.suffix == ".json":
        return [(prompt, answer) for prompt, answer in json.loads(path.read_text())]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "gora" / "assets" / "models" / "tiny-6m")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [(row.get("question") or row.get("prompt") or row.get("instruction"), row.get("answer") or row.get("response") or row.get("output")) for row in rows]  # fmt: skip # noqa: E501
    ids = tokenizer([text for pair in texts for text in pair])["input_ids"]
    counts = [len(each) for each in ids]
    return list(zip(counts[::2], counts[1::2], strict=True))


def fixed(tokens: int, vocabulary: int, rows: int = 256) -> Examples:
    """Rows of one length, of which the second half is trained."""
    return drawn([(tokens // 2, tokens - tokens // 2)] * rows, vocabulary)


def drawn(pairs: list[tuple[int, int]], vocabulary: int, longest: int = 1024, most: int = 2000) -> Examples:
    """Rows of random ids with these lengths of prompt and answer."""
    generator = random.Random(0)
    encoded = []
    for prompt, answer in pairs[:most]:
        ids = [generator.randrange(10, vocabulary) for _ in range(prompt + answer)][: max(longest, pairs[0][0] * 2)]
        encoded.append(Encoded(array("i", ids), array("i", [-100] * prompt + ids[prompt:])))
    encoded = [each for each in encoded if any(label >= 0 for label in each.labels)]
    return Examples(encoded, [""] * len(encoded))


def attempt(
    way: str,
    model: LlamaForCausalLM,
    targets: list[str],
    rows: Examples,
    micro: int,
    batch: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Rate, padding and memory; or what went wrong."""
    clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model.config._attn_implementation = "sdpa"
    clock = Clock(device, arguments.counted)
    try:
        wrapped = get_peft_model(model, lora(model, targets, mixed="mixed ranks" in way))
        with tempfile.TemporaryDirectory() as folder:
            facts = WAYS[way](wrapped, rows, micro, batch, arguments.steps, clock, Path(folder))
        measured = {**facts, **clock.facts()}
        if device.type == "cuda":
            measured["memory"] = torch.cuda.max_memory_allocated()
            measured["reserved"] = torch.cuda.max_memory_reserved()
        return measured
    except Exception as error:  # one way that fails must not take the others along
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        restore(model)


def lora(model: LlamaForCausalLM, targets: list[str], *, mixed: bool) -> LoraConfig:
    """Rank 8 everywhere, or from 4 to 32 as a plan may give them."""
    generator = random.Random(0)
    layers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets] if mixed else []
    pattern = {name: generator.choice([4, 4, 5, 6, 7, 8, 8, 10, 12, 16, 32]) for name in layers}
    return LoraConfig(r=8, lora_alpha=16, target_modules=targets, rank_pattern=pattern)


def restore(model: LlamaForCausalLM) -> None:
    """Take off what a way has put on the model."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.base_layer)
    modeling_llama.apply_rotary_pos_emb = ROTARY
    for module in model.modules():
        vars(module).pop("forward", None)
        module._compiled_call_impl = None
    model.__dict__.pop("peft_config", None)
    model._hf_peft_config_loaded = False
    clear()


def card(device: torch.device) -> str:
    """Name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    from importlib.metadata import PackageNotFoundError, version

    known = {}
    for name in ("torch", "transformers", "accelerate", "peft", "liger-kernel", "trl"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


def clear() -> None:
    """Give freed memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table; ratios are to PEFT with the Trainer in the same setting."""
    lines = [
        "| shape, setting | way | tokens/s | ratio | TFLOP/s (4N) | padding | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        head = f"| {row['shape']}, {row['setting']} | {row['way']} |"
        if "error" in row:
            lines.append(f"{head} failed: {row['error'][:80]} |")
            continue
        same = [each for each in results if (each["shape"], each["setting"]) == (row["shape"], row["setting"])]
        base = next((each["rate"] for each in same if each["way"] == "PEFT + Trainer" and "rate" in each), None)
        ratio = f"{row['rate'] / base:.2f}" if base else ""
        padding = f"{row['padding']:.0%}" if "padding" in row else ""
        memory = f"{row['memory'] / 1e9:.1f}" if "memory" in row else ""
        lines.append(f"{head} {row['rate']:,.0f} | {ratio} | {row['tflops']:.0f} | {padding} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
