"""The ways of `training.py`: each trains one wrapped model on rows and tells a clock of its steps."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments

from gora.data import Collator, Examples
from gora.methods import METHODS
from gora.models.kernels import use_kernels
from gora.models.rows_apart import keeps_apart, set_apart
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runtime.engine import Engine
from gora.runtime.world import World
from gora.training.course import Course
from gora.training.layout import StepLayout, choose_layout, padding_by_length
from gora.training.step_rows import KeptSteps
from gora.training.trainer import GoraTrainer

RECORDING = 12
"""Steps before those that are asked for, of ways that record passes: lengths are recorded when they come again."""
MODEL = Path(__file__).resolve().parents[2] / "gora" / "assets" / "models" / "tiny-6m"


class Clock:
    """Notes when each step ended, and the tokens in it.

    Args:
        device: what computes.
        counted: of how many steps, the last ones, the rate is the median.
    """

    def __init__(self, device: torch.device, counted: int) -> None:
        self._device, self._counted, self.times, self.tokens = device, counted, [time.perf_counter()], []

    def step(self, tokens: int) -> None:
        """A step of so many tokens of rows has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(tokens)

    def facts(self) -> dict[str, Any]:
        """Rate over the last steps: the median, and each."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        rates = [tokens / each for tokens, each in zip(self.tokens, seconds, strict=True)][1:][-self._counted :]
        return {"rate": statistics.median(rates), "rates": [round(rate, 1) for rate in rates]}


class Told(TrainerCallback):
    """Tells the clock of each step."""

    def __init__(self, clock: Clock, tokens: Any) -> None:
        self._clock, self._tokens = clock, tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self._clock.step(self._tokens())


def by_trainer(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path, **more: Any
) -> dict[str, Any]:
    """PEFT and the Trainer as documented: padded batches drawn at random, bf16."""
    seen = {"tokens": 0, "computed": 0, "before": 0}
    padded = Collator(0)

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        collated = padded(examples)
        seen["tokens"] += int(collated["attention_mask"].sum())
        seen["computed"] += collated["attention_mask"].numel()
        return collated

    def since() -> int:
        tokens = seen["tokens"] - seen["before"]
        seen["before"] = seen["tokens"]
        return tokens

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        bf16=torch.cuda.is_available(),
        learning_rate=1e-4,
        optim="adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch",
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        label_names=["labels"],
        use_cpu=not torch.cuda.is_available(),
        **more,
    )
    trainer = Trainer(
        model=wrapped, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Told(clock, since)]
    )
    trainer.train()
    return {"padding": 1 - seen["tokens"] / seen["computed"]}


def by_trainer_with_liger(*arguments: Any) -> dict[str, Any]:
    """The same with `use_liger_kernel`."""
    return by_trainer(*arguments, use_liger_kernel=True)


def by_gora(
    wrapped: PeftModel,
    rows: Examples,
    micro: int,
    batch: int,
    steps: int,
    clock: Clock,
    folder: Path,
    packing: str = "auto",
    kernels: str = "auto",
    records: bool = True,
) -> dict[str, Any]:
    """Gora's Trainer, as a run makes it."""
    steps += RECORDING * records
    recipe = Recipe.model_validate(
        {
            "model": {"name": "none"},
            "data": {"train": {"path": "none"}, "packing": packing},
            "adapter": {"method": "lora"},
            "train": {
                "batch_size": batch,
                "micro_batch_size": micro,
                "max_steps": steps,
                "learning_rate": 1e-4,
                "log_steps": 1000,
                "kernels": kernels,
            },
        }
    )
    context = _context(recipe, rows, folder)
    base: Any = wrapped.get_base_model()
    ids = [rows[index]["input_ids"] for index in range(3)]
    arithmetic = torch.autocast(context.device.type, torch.bfloat16)
    reason = ""
    if packing != "none":
        reason = set_apart(base, ids, arithmetic)
    lines = use_kernels(base, kernels, ids, arithmetic) if context.fuses else []
    padding = padding_by_length(rows.lengths, batch, micro)
    kind = choose_layout(recipe.data.packing, keeps_apart=keeps_apart(base), padding=padding)
    layout = StepLayout(kind=kind, size=micro, longest=max(rows.lengths), processes=1)
    trainer = GoraTrainer(
        wrapped,
        context,
        steps=steps,
        steps_of_run=KeptSteps(rows, batch, recipe.seed),
        layout=layout,
        method=METHODS["lora"],
        lr_ratio=1.0,
        all_used=True,
        evaluate_loss=None,
        provenance={},
        course=Course(),
    )
    before = {"tokens": 0}

    def since() -> int:
        tokens = trainer.padding.tokens - before["tokens"]
        before["tokens"] = trainer.padding.tokens
        return tokens

    trainer.add_callback(Told(clock, since))
    told: list[str] = []
    if not records:
        trainer._recorded = None
    elif trainer._recorded:
        trainer._recorded._blocks._say = told.append
    trainer.train()
    return {
        "padding": trainer.padding.share,
        "waiting": trainer.waited.total / (clock.times[-1] - clock.times[0]),
        "layout": kind,
        "kernels": lines,
        "not_packed": reason,
        "recorded": [*told, trainer._recorded.recordings if trainer._recorded else 0],
    }


def _context(recipe: Recipe, rows: Examples, folder: Path) -> Any:
    """What the Trainer asks of a run."""
    cuda = torch.cuda.is_available()
    context = SimpleNamespace(
        recipe=recipe,
        data=SimpleNamespace(train=rows, eval=None),
        inputs=SimpleNamespace(of_text=True),
        collator=Collator(0),
        folder=RunFolder(folder),
        precision="bf16" if cuda else "fp32",
        world=World(),
        engine=Engine.of("ddp"),
        device=torch.device("cuda" if cuda else "cpu"),
        forward_settings={"use_cache": False},
    )
    context.fuses = RunContext.fuses.fget(context)  # type: ignore[attr-defined]
    return context


def gora_as_peft(*arguments: Any) -> dict[str, Any]:
    """Without packing and kernels."""
    return by_gora(*arguments, packing="none", kernels="none")


def gora_liger(*arguments: Any) -> dict[str, Any]:
    """With Liger."""
    return by_gora(*arguments, kernels="liger")


def gora_padded(*arguments: Any) -> dict[str, Any]:
    """Kernels alone."""
    return by_gora(*arguments, packing="none")


def gora_unrecorded(*arguments: Any) -> dict[str, Any]:
    """Without recording passes."""
    return by_gora(*arguments, records=False)


def gora_packed(*arguments: Any) -> dict[str, Any]:
    """Rows end to end, also those of one length."""
    return by_gora(*arguments, packing="packed")


def gora_packed_unrecorded(*arguments: Any) -> dict[str, Any]:
    """The same without recording passes."""
    return by_gora(*arguments, packing="packed", records=False)


def gora_compiled(*arguments: Any) -> dict[str, Any]:
    """With torch.compile on each block."""
    return by_gora(*arguments, kernels="compile")


def gora_whole_step(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path
) -> dict[str, Any]:
    """With all rows of a step in one micro-batch, which `micro_batch_size: auto` chooses where they fit."""
    return by_gora(wrapped, rows, batch, batch, steps, clock, folder)


def by_trl(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path
) -> dict[str, Any]:
    """TRL's SFTTrainer with packing: a row of a batch is a sequence as long as the longest row, filled with rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        learning_rate=1e-4,
        packing=True,
        max_length=max(rows.lengths),
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    dataset = Dataset.from_list([rows[index] for index in range(len(rows))])
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokens = {"seen": 0, "before": 0}

    def since() -> int:
        new = tokens["seen"] - tokens["before"]
        tokens["before"] = tokens["seen"]
        return new

    trainer = SFTTrainer(
        model=wrapped,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Told(clock, since)],
    )
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        tokens["seen"] += sum(len(example["input_ids"]) for example in examples)
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    return {"padding": 0.0}


def bare(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path
) -> dict[str, Any]:
    """Forward and backward of PEFT's model under autocast, no optimizer."""
    collator, device = Collator(0), next(wrapped.parameters()).device
    for step in range(steps):
        tokens = 0
        for turn in range(batch // micro):
            start = (step * batch + turn * micro) % (len(rows) - micro)
            collated = collator([rows[index] for index in range(start, start + micro)])
            tokens += int(collated["attention_mask"].sum())
            moved = {key: value.to(device, non_blocking=True) for key, value in collated.items()}
            with torch.autocast(device.type, torch.bfloat16):
                loss = wrapped(**moved, use_cache=False).loss
            loss.backward()
        clock.step(tokens)
    return {}


WAYS = {
    "PEFT + Trainer": by_trainer,
    "PEFT + Trainer + Liger": by_trainer_with_liger,
    "PEFT, bare passes": bare,
    "gora, packing and kernels none": gora_as_peft,
    "gora, packing none": gora_padded,
    "gora, kernels liger": gora_liger,
    "gora": by_gora,
    "gora, mixed ranks": by_gora,
    "gora, unrecorded": gora_unrecorded,
    "gora, packed": gora_packed,
    "gora, packed, mixed ranks": gora_packed,
    "gora, packed, unrecorded": gora_packed_unrecorded,
    "gora, packed, unrecorded, mixed ranks": gora_packed_unrecorded,
    "gora, kernels compile": gora_compiled,
    "gora, one micro-batch": gora_whole_step,
    "TRL, packed": by_trl,
}
