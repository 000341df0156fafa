"""Models, sets, targets and methods whose rates are looked for, as recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

ROWS, STEPS, HELD_OUT = 16, 150, 256
SEEDS = (42, 43, 44)
LABELS_HELD_OUT = 2000
"""Rows of one label each say less than those of many words."""
SETS: dict[str, dict[str, Any]] = {
    "math": {"train": "gsm8k/train.jsonl", "eval": "gsm8k/test.jsonl", "prompt": "question", "response": "answer"},
    "code": {"train": "code_feedback_standin/train.jsonl", "format": "chat", "chat_template": "plain"},
    "instruction": {
        "train": "wizardlm_70k_standin/train.jsonl",
        "prompt": "instruction",
        "response": "output",
    },
    "arc": {
        "train": "commonsense/arc_easy/train.jsonl",
        "eval": "commonsense/arc_easy/test.jsonl",
        "prompt": "question",
    },
    "boolq": {"train": "commonsense/boolq/train.jsonl", "eval": "commonsense/boolq/test.jsonl", "prompt": "question"},
    "openbookqa": {
        "train": "commonsense/openbookqa/train.jsonl",
        "eval": "commonsense/openbookqa/test.jsonl",
        "prompt": "question",
    },
    "sst2": {
        "train": "glue/sst2/train.jsonl",
        "eval": "glue/sst2/validation.jsonl",
        "template": "{sentence}",
        "response": "label",
        "choices": ["negative", "positive"],
    },
    "qnli": {
        "train": "glue/qnli/train.jsonl",
        "eval": "glue/qnli/validation.jsonl",
        "template": "{question}",
        "prompt_pair": "sentence",
        "response": "label",
        "choices": ["entailment", "not entailment"],
    },
    "cola": {
        "train": "glue/cola/train.jsonl",
        "eval": "glue/cola/validation.jsonl",
        "template": "{sentence}",
        "response": "label",
        "choices": ["unacceptable", "acceptable"],
    },
    "mnli": {
        "train": "glue/mnli/train.jsonl",
        "eval": "glue/mnli/validation.jsonl",
        "template": "{premise}",
        "prompt_pair": "hypothesis",
        "response": "label",
        "choices": ["entailment", "neutral", "contradiction"],
    },
    "arc-challenge": {
        "train": "commonsense/arc_challenge/train.jsonl",
        "eval": "commonsense/arc_challenge/test.jsonl",
        "prompt": "question",
    },
    "mrpc": {
        "train": "glue/mrpc/train.jsonl",
        "eval": "glue/mrpc/validation.jsonl",
        "template": "{sentence1}",
        "prompt_pair": "sentence2",
        "response": "label",
        "choices": ["different", "equivalent"],
    },
    "rte": {
        "train": "glue/rte/train.jsonl",
        "eval": "glue/rte/validation.jsonl",
        "template": "{sentence1}",
        "prompt_pair": "sentence2",
        "response": "label",
        "choices": ["entailment", "not entailment"],
    },
}
PAPER = {"preset": "paper", "adapter.method": "gora", "gora.steps": 16, "gora.micro_batch_size": 8, "adapter.rank": 8}


class Combination(NamedTuple):
    """What is trained: `gora` is the preset's, `gora paper` has 16 times the rate for B and the paper's ranks."""

    model: str
    rows: str
    targets: str
    method: str
    steps: int = STEPS
    seed: int = SEEDS[0]

    def __str__(self) -> str:
        seed = "" if self.seed == SEEDS[0] else f" seed {self.seed}"
        return f"{self.model} {self.rows} {self.targets} {self.method} {self.steps}{seed}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """A new head begins as noise, which one seed cannot judge."""
        return SEEDS if self.model == "minilm" else (self.seed,)


def recipe_of(what: Combination, models: dict[str, str], data: Path) -> dict[str, Any]:
    """The recipe of a combination, but for its rate and its folder."""
    rows = dict(SETS[what.rows])
    held_out = LABELS_HELD_OUT if "choices" in rows else HELD_OUT
    if what.model != "minilm" and "prompt_pair" in rows:
        rows["template"] += f" {{{rows.pop('prompt_pair')}}}"
    section: dict[str, Any] = {
        "train": {
            "path": str(data / rows.pop("train")),
            "max_rows": ROWS * what.steps + (0 if "eval" in rows else held_out),
        },
        "max_length": 256,
        "overlong": "drop",
    }
    if "eval" in rows:
        section["eval"] = {"path": str(data / rows.pop("eval")), "max_rows": held_out}
    else:
        section["holdout"] = held_out
    recipe: dict[str, Any] = {
        "preset": "auto",
        "seed": what.seed,
        "model": {"name": models[what.model]},
        "data": section | rows,
        "adapter": {"method": what.method, "targets": what.targets},
        "gora": {},
        "train": {
            "batch_size": ROWS,
            "micro_batch_size": ROWS,
            "max_steps": what.steps,
            "epochs": 20.0,
            "kernels": "fused",
        },
        "evaluation": {"micro_batch_size": 64},
    }
    if what.model == "minilm":
        recipe["model"]["head"] = "classification"
    for key, value in (PAPER if what.method == "gora paper" else {}).items():
        *sections, name = key.split(".")
        (recipe[sections[0]] if sections else recipe)[name] = value
    return recipe


def combination(name: str) -> Combination:
    """The one that is called so."""
    model, rows, targets, *method, steps = name.split(" seed ")[0].split(" ")
    seed = int(name.split(" seed ")[1]) if " seed " in name else SEEDS[0]
    return Combination(model, rows, targets, " ".join(method), int(steps), seed)
