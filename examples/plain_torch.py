"""GoRA in a training loop of your own: gradients, ranks and initial values from gora, everything else from torch.

    python examples/plain_torch.py [--steps 20]

Needs no GPU and no network: the model and the rows ship with gora. Prints the eval loss before and after.
"""

from __future__ import annotations

import argparse
import json

import torch
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import gora
from gora.assets import folder

MODEL, ROWS = folder("models") / "tiny-6m", folder("data") / "gsm8k"


def main() -> None:
    """Train, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    batches = batches_of("train.jsonl", tokenizer, 8 * max(steps, 8))
    held_out = batches_of("test.jsonl", tokenizer, 32)
    before = mean_loss(model, held_out)

    # Eight micro-batches here; 64 are usual.
    gradients = gora.mean_gradients(model, "attention", batches[:8])
    config, values = gora.plan_adapter(gradients, rank=8, alpha=16, gamma=0.05)
    model = get_peft_model(model, config)
    gora.set_initial_values(model, values)

    # B learns 16 times as fast as A, as in the paper.
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    for batch in batches[:steps]:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    ranks = sorted({len(factor_a) for factor_a, _ in values.values()})
    print(f"ranks {ranks[0]} to {ranks[-1]}; loss {before:.4f} before, {mean_loss(model, held_out):.4f} after")


def batches_of(name: str, tokenizer, count: int) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of eight rows, with a loss on the answers only."""
    with open(ROWS / name, encoding="utf-8") as stream:
        rows = [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]
    encoded = []
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        answer = tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append((prompt + answer, [-100] * len(prompt) + answer))
    return [padded(encoded[at : at + 8]) for at in range(0, len(encoded), 8)]


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of one length, at most 256 tokens."""
    length = min(256, max(len(ids) for ids, _ in rows))

    def filled(values: list[int], filler: int) -> list[int]:
        return (values + [filler] * length)[:length]

    return {
        "input_ids": torch.tensor([filled(ids, 0) for ids, _ in rows]),
        "attention_mask": torch.tensor([filled([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([filled(labels, -100) for _, labels in rows]),
    }


@torch.no_grad()
def mean_loss(model, batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean over the micro-batches."""
    model.eval()
    losses = [model(**batch).loss.item() for batch in batches]
    model.train()
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
