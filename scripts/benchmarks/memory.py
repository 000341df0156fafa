"""Peak memory of the gradient pass and of training, beside the estimate of `gora check`.

One GPU, models with random weights (memory does not depend on their values), one process:

    python scripts/benchmarks/memory.py --output memory.json

Each setting runs gora's own gradient pass and gora's own Trainer on rows of random tokens, for three micro-batches and
three optimizer steps of two micro-batches. Measured are `torch.cuda.max_memory_allocated`, which the estimate is of,
and `max_memory_reserved`, which the allocator holds on to beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gora import assets
from gora.adapters.dry_wrap import choose_layers
from gora.data.collate import Collator
from gora.data.encode import Encoded
from gora.data.examples import DataCounts, Examples, count
from gora.data.preparation import PreparedData
from gora.estimate.memory import Memory
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.checkpointing import recompute_activations
from gora.models.device import default_device
from gora.models.source import Source
from gora.models.weight_files import WeightsNote
from gora.plan import ModelIdentity
from gora.planning.gradient_pass import collect_gradients
from gora.planning.workload import workload_of
from gora.recipe import load_recipe
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.inputs import TextInputs
from gora.runtime.engine import Engine
from gora.runtime.interrupt import StopRequest
from gora.runtime.world import World
from gora.training.assembly import make_trainer
from gora.training.opening import Opened
from gora.training.start import Wrapped

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is run."""

    shape: str
    targets: str
    rows: int
    length: int
    checkpointing: bool = False
    padded: bool = False
    dropout: float = 0.0
    quantization: str | None = None
    rank: int = 8


SETTINGS = (
    Setting(shape="8b", targets="attention", rows=4, length=512),
    Setting(shape="8b", targets="attention", rows=2, length=2048),
    Setting(shape="8b", targets="attention", rows=1, length=4096),
    Setting(shape="8b", targets="attention", rows=4, length=1024, padded=True),
    Setting(shape="8b", targets="attention", rows=4, length=1024, dropout=0.1),
    Setting(shape="8b", targets="attention", rows=4, length=512, checkpointing=True),
    Setting(shape="8b", targets="attention", rows=2, length=4096, checkpointing=True),
    Setting(shape="8b", targets="all-linear", rows=4, length=512),
    Setting(shape="8b", targets="all-linear", rows=2, length=2048, rank=64),
    Setting(shape="8b", targets="all-linear", rows=8, length=1024, checkpointing=True),
    Setting(shape="8b", targets="all-linear", rows=2, length=4096, checkpointing=True),
    Setting(shape="135m", targets="attention", rows=1, length=512),
    Setting(shape="135m", targets="attention", rows=8, length=1024),
    Setting(shape="135m", targets="all-linear", rows=16, length=512),
    Setting(shape="135m", targets="all-linear", rows=8, length=2048, checkpointing=True),
    Setting(shape="8b", targets="attention", rows=2, length=2048, quantization="nf4"),
    Setting(shape="8b", targets="all-linear", rows=4, length=1024, quantization="nf4", checkpointing=True),
)
TRIALS = (
    Setting(shape="tiny", targets="attention", rows=2, length=64),
    Setting(shape="tiny", targets="all-linear", rows=4, length=32, checkpointing=True, padded=True),
)


def main() -> None:
    """Measure every setting, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("memory.json"))
    parser.add_argument("--layers", type=int, default=8, help="blocks of the 8B shape")
    parser.add_argument("--try", dest="trial", action="store_true", help="a tiny model, on any device")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    models: dict[tuple[str, str | None], Any] = {}
    for setting in TRIALS if arguments.trial else SETTINGS:
        key = (setting.shape, setting.quantization)
        done = len(rows)
        try:
            if key not in models:
                models.clear()
                _forget()
                models[key] = make_model(setting, arguments.layers)
            rows += measure(setting, models[key])
        except Exception as error:  # one setting less, and said so
            rows.append({**asdict(setting), "error": f"{type(error).__name__}: {error}"})
            models.clear()
        for row in rows[done:]:
            print(line(row), flush=True)
        document = {"machine": machine(), "layers": arguments.layers, "rows": rows}
        arguments.output.write_text(json.dumps(document, indent=1))


def make_model(setting: Setting, layers: int) -> LlamaForCausalLM:
    """A Llama with random weights in bfloat16 on the GPU, or packed in 4 bits."""
    config = config_of(setting.shape, layers if setting.quantization is None else layers // 2)
    torch.manual_seed(0)
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    if setting.quantization:
        from gora.models.quantization import _bitsandbytes

        room = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=room if room.is_dir() else None) as folder:
            model.save_pretrained(folder)
            del model
            _forget()
            model = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                quantization_config=_bitsandbytes(setting.quantization, dtype),
                device_map={"": device},
            )
    return model.requires_grad_(False).eval()


def config_of(shape: str, layers: int) -> LlamaConfig:
    """The configuration of one of `SHAPES`."""
    settings = {"num_hidden_layers": layers, **SHAPES[shape]}
    return LlamaConfig(**settings, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def measure(setting: Setting, model: LlamaForCausalLM) -> list[dict[str, Any]]:
    """The gradient pass and training of one setting, each with its estimate."""
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(setting, model, Path(folder))
        work = workload_of(context)
        targets = {name: model.get_submodule(name) for name in context.chosen.layers}
        identity = ModelIdentity(name="random", config="0" * 64, weights="0" * 64)
        recompute, results = setting.checkpointing, []
        peak = Peak()
        collected: Any = collect_gradients(context, model, targets, identity, low_memory=False)
        results.append(peak.row(setting, "gradients", work.gradients(setting.rows, checkpointing=recompute)))
        del collected
        _forget()
        method = METHODS["lora"]
        settings = AdapterSettings(rank=setting.rank, alpha=16, dropout=setting.dropout)
        wrapped = method.wrap(model, Wrapping(targets=targets, settings=settings))
        assert isinstance(wrapped, PeftModel)
        trainable = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
        start = Wrapped(model=wrapped, original="", frozen="", initial=None, trainable=trainable, losses={})
        opened = Opened(plan=None, checkpoint=None, steps=3)
        peak = Peak()
        trainer, report, _ = make_trainer(context, opened, start, StopRequest())
        trainer.train()
        report.stop()
        estimate = work.training(setting.rows, checkpointing=recompute)
        results.append(peak.row(setting, "training", estimate))
        trainer.accelerator.free_memory()
        del trainer, report, start
        wrapped.unload()
        recompute_activations(model.eval(), False)
        _forget()
    return results


def context_of(setting: Setting, model: LlamaForCausalLM, folder: Path) -> RunContext:
    """A run of random rows, whose model is in memory and nowhere else."""
    recipe = recipe_of(setting, folder)
    context = RunContext._of(recipe, World(), Engine.of("ddp"), mode="new", folder=RunFolder(folder))
    config = model.config
    source = Source(path=str(folder), revision=None, trust_remote_code=False, config=plain(config))
    data = rows_of(setting, int(config.vocab_size))
    tokenizer = AutoTokenizer.from_pretrained(assets.resolve(recipe.model.name, "models"))
    inputs = TextInputs(source=source, processor=tokenizer, data=data, collator=Collator(0))
    chosen = choose_layers(recipe.adapter, source)
    base = type("Base", (), {"note": WeightsNote(fingerprint="", tensors="")})()
    context.__dict__.update({"inputs": inputs, "chosen": chosen, "base": base})
    return context


def plain(config: Any) -> LlamaConfig:
    """The configuration without its quantisation: the estimate takes that from the recipe."""
    return LlamaConfig(**{key: value for key, value in config.to_dict().items() if key != "quantization_config"})


def recipe_of(setting: Setting, folder: Path) -> Recipe:
    """Three steps of two micro-batches, without evaluation."""
    values = {
        "output": str(folder),
        "adapter.method": "lora",
        "adapter.targets": setting.targets,
        "adapter.rank": setting.rank,
        "adapter.dropout": setting.dropout,
        "model.quantization": setting.quantization or "null",
        "data.eval": "null",
        "data.max_length": setting.length,
        "evaluation.steps": "null",
        "data.packing": "none",
        "train.kernels": "none",
        "gora.steps": 3,
        "gora.offload": "none",
        "train.batch_size": 2 * setting.rows,
        "train.micro_batch_size": setting.rows,
        "train.max_steps": 3,
        "train.activation_checkpointing": str(setting.checkpointing).lower(),
    }
    return load_recipe("quickstart", [f"{key}={value}" for key, value in values.items()]).recipe


def rows_of(setting: Setting, vocabulary: int) -> PreparedData:
    """Rows of random tokens, all supervised; every second one shorter, if rows are to be padded."""
    draw = random.Random(0)

    def row(index: int) -> Encoded:
        length = setting.length - (setting.length // 4 if setting.padded and index % 2 else 0)
        ids = array("i", (draw.randrange(3, vocabulary) for _ in range(length)))
        return Encoded(input_ids=ids, labels=array("i", ids), truncated=False)

    number = 6 * setting.rows
    examples = Examples([row(index) for index in range(number)], [f"row {index}" for index in range(number)])
    counts = DataCounts(count(examples, rows=number))
    return PreparedData(examples, None, counts, examples.fingerprint())


class Peak:
    """Memory from here on."""

    def __init__(self) -> None:
        self._gpu = torch.cuda.is_available()
        _forget()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        self._start = time.monotonic()

    def row(self, setting: Setting, stage: str, estimate: Memory) -> dict[str, Any]:
        """What was measured beside what was expected, in bytes."""
        measured = reserved = 0
        if self._gpu:
            torch.cuda.synchronize()
            measured, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {
            **asdict(setting),
            "stage": stage,
            "estimate": {**estimate.parts, "total": estimate.total},
            "measured": measured,
            "reserved": reserved,
            "error_share": round(estimate.total / measured - 1, 4) if measured else None,
            "seconds": round(time.monotonic() - self._start, 2),
        }


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    name = f"{row['shape']:5}{row['targets']:11}{row['rows']:3}x{row['length']:<5}"
    flags = [key for key in ("checkpointing", "padded", "dropout", "quantization") if row[key]]
    if "error" in row:
        return f"{name} {row['error']} {','.join(flags)}"
    sizes = f"{row['estimate']['total'] / 1e9:7.2f} {row['measured'] / 1e9:7.2f} {row['reserved'] / 1e9:7.2f} GB"
    share = "" if row["error_share"] is None else f"{100 * row['error_share']:+6.1f} %"
    return f"{name} {row['stage']:10}{sizes} {share} {row['seconds']:6.1f} s {','.join(flags)}"


def machine() -> dict[str, str]:
    """Card and versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        # cuBLAS keeps what it took for the streams of an earlier setting.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
