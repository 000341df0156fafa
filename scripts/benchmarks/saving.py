"""How long training stands still for a checkpoint of an adapter of an 8B model with its optimizer, on this machine.

    python scripts/benchmarks/saving.py --output saving.json

The model has Llama-3.1-8B's shape, and its base weights are memory that nothing ever touches: they are in no
checkpoint. The adapter's values and the optimizer's states have their real number and sizes, and what saves them is
what saves them in a run. `copied` are the seconds that copies of all of them take, which would have to be made before
another thread could write.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from in_memory import ALL_LINEAR, ATTENTION, SHAPES, versions
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from gora.recipe.schema import TrainSection
from gora.runs.folder import RunFolder
from gora.runtime.world import World
from gora.training.checkpoints import CheckpointTrainer, Kept
from gora.training.course import Course
from gora.training.step_rows import RunSteps

TARGETS = {"attention": ATTENTION, "all-linear": ALL_LINEAR}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("saving.json"))
    parser.add_argument("--folder", type=Path, default=None, help="where checkpoints go; on the file system of runs")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    interval = 60 * cast(float, TrainSection.model_fields["save_minutes"].default)
    rows = [measure(name, arguments) for name in TARGETS]
    facts = {"versions": versions(), "rank": 8, "interval": interval, "rows": rows}
    arguments.output.write_text(json.dumps(facts, indent=1))
    print("| targets | trained values | MB | seconds (range) | of processors | copied | of the interval |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        seconds = statistics.median(row["seconds"])
        print(
            f"| {row['targets']} | {row['values']:,} | {row['bytes'] / 1e6:.0f} | {seconds:.2f} "
            f"({min(row['seconds']):.2f} to {max(row['seconds']):.2f}) | {statistics.median(row['processor']):.2f} | "
            f"{row['copied']:.2f} | {seconds / interval:.2%} |"
        )


def measure(targets: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each save, and those of processors; bytes of a checkpoint."""
    model = wrapped(arguments.shape, TARGETS[targets])
    trained = [value for value in model.parameters() if value.requires_grad]
    seconds, processor = [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as path:
        trainer = trainer_of(model, Path(path))
        for step in range(1, arguments.times + 1):
            trainer.state.global_step = step
            began, used = time.perf_counter(), time.process_time()
            trainer._save_checkpoint(model, None)
            seconds.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
        (newest, *_) = reversed(trainer.kept.folder.all_checkpoints())
        size = sum(file.stat().st_size for file in Path(newest).rglob("*") if file.is_file())
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        began = time.perf_counter()
        copies = [value.detach().clone() for value in (*trained, *states)]
        copied = time.perf_counter() - began
    return {
        "targets": targets,
        "values": sum(value.numel() for value in trained),
        "tensors": len(copies),
        "bytes": size,
        "seconds": seconds,
        "processor": processor,
        "copied": copied,
    }


def wrapped(shape: str, targets: list[str]) -> PeftModel:
    """The model with a LoRA of rank 8 in float32."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).to(torch.bfloat16)
    with_memory = model.to_empty(device="cpu").requires_grad_(False)
    found = get_peft_model(with_memory, LoraConfig(r=8, target_modules=targets))  # type: ignore[arg-type]
    return cast(PeftModel, found)


def trainer_of(model: PeftModel, folder: Path) -> CheckpointTrainer:
    """gora's Trainer after one optimizer step."""
    arguments = TrainingArguments(output_dir=str(folder / "checkpoints"), report_to=[], use_cpu=True)
    trainer = CheckpointTrainer(model=model, args=arguments)
    trainer.kept = Kept(
        folder=RunFolder(folder),
        world=World(),
        number=2,
        bytes_at_least=0,
        provenance={},
        course=Course(),
        steps=cast(RunSteps, SimpleNamespace(state=lambda step: None)),
    )
    optimizer = trainer.create_optimizer()
    trainer.create_scheduler(10, optimizer)
    for value in model.parameters():
        if value.requires_grad:
            value.grad = torch.zeros_like(value)
    optimizer.step()
    return trainer


if __name__ == "__main__":
    main()
