"""Others' ways of training one wrapped model on rows, for `training.py` to time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from clock import Clock, Told
from in_memory import TOKENIZER
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from gora.data import Collator, Examples


def by_trainer(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path, **more: Any
) -> dict[str, Any]:
    """PEFT and the Trainer as documented: padded batches drawn at random, bf16."""
    seen = {"tokens": 0, "computed": 0}
    padded = Collator(0)

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        collated = padded(examples)
        seen["tokens"] += int(collated["attention_mask"].sum())
        seen["computed"] += collated["attention_mask"].numel()
        return collated

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
    told = Told(clock, lambda: seen["tokens"])
    trainer = Trainer(model=wrapped, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[told])
    trainer.train()
    return {"padding": 1 - seen["tokens"] / seen["computed"]}


def by_trainer_with_liger(*arguments: Any) -> dict[str, Any]:
    """The same with `use_liger_kernel`."""
    return by_trainer(*arguments, use_liger_kernel=True)


def by_trl(
    wrapped: PeftModel, rows: Examples, micro: int, batch: int, steps: int, clock: Clock, folder: Path
) -> dict[str, Any]:
    """TRL's SFTTrainer with packing: a row of a batch is a sequence as long as the longest row, filled with rows.

    A step has as many of them as hold about the tokens of `batch` rows.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    sequences = batch * sum(rows.lengths) / len(rows) / max(rows.lengths)
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, round(sequences / micro)),
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
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    seen = {"tokens": 0}
    trainer = SFTTrainer(
        model=wrapped,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Told(clock, lambda: seen["tokens"])],
    )
    collate = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        seen["tokens"] += sum(len(example["input_ids"]) for example in examples)
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
    "TRL, packed": by_trl,
}
