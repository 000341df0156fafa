"""GoRA with TRL's SFTTrainer: TRL reads the rows and trains, gora chooses ranks and initial values.

    pip install trl
    python examples/trl_sft.py [--steps 20] [--output sft]

Needs no GPU and no network: the model and the rows ship with gora. Prints the eval loss before and after.
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import gora
from gora.assets import folder

MODEL, ROWS = folder("models") / "tiny-6m", folder("data") / "gsm8k"


def main() -> None:
    """Train, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="sft")
    given = parser.parse_args()
    settings = SFTConfig(
        output_dir=given.output,
        max_steps=given.steps,
        per_device_train_batch_size=8,
        max_length=256,
        bf16=False,
        report_to=[],
        seed=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = {
        "processing_class": tokenizer,
        "train_dataset": rows_of("train.jsonl"),
        "eval_dataset": rows_of("test.jsonl"),
    }

    # TRL's own trainer on the plain model gives its own micro-batches, with its masks and its loss.
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    trainer = SFTTrainer(model=plain, args=settings, **rows)
    before = trainer.evaluate()["eval_loss"]
    batches = islice(trainer.get_train_dataloader(), 8)  # 64 are usual
    gradients = gora.mean_gradients(plain, "attention", batches)
    config, values = gora.plan_adapter(gradients, rank=8, alpha=16, gamma=0.05)

    trainer = SFTTrainer(model=plain, args=settings, peft_config=config, **rows)
    gora.set_initial_values(trainer.model, values)
    # B learns 16 times as fast as A, as in the paper.
    trainer.optimizer = create_loraplus_optimizer(trainer.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    trainer.train()
    print(f"loss {before:.4f} before, {trainer.evaluate()['eval_loss']:.4f} after")
    trainer.save_model(given.output)


def rows_of(name: str) -> Dataset:
    """Rows with a prompt and a completion."""
    rows = Dataset.from_json(str(ROWS / name)).select(range(64))
    return rows.map(
        lambda row: {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"},
        remove_columns=rows.column_names,
    )


if __name__ == "__main__":
    main()
