"""What `scripts/results/run.py` compares: methods, changes of one setting, and data sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]

PAPER: dict[str, Settings] = {
    "full": {"adapter.method": "full"},
    "LoRA": {"adapter.method": "lora"},
    "rsLoRA": {"adapter.method": "rslora"},
    "DoRA": {"adapter.method": "dora"},
    "LoRA+": {"adapter.method": "lora+"},
    "OLoRA": {"adapter.method": "olora"},
    "PiSSA": {"adapter.method": "pissa"},
    "LoRA-GA as in PEFT": {"adapter.method": "lora-ga-peft"},
    "AdaLoRA": {"adapter.method": "adalora"},
    "LoRA-Pro": {"adapter.method": "lora-pro"},
    "rsLoRA with rates of LoRA+": {"adapter.method": "rslora", "train.loraplus_lr_ratio": 16},
    "GoRA": {"adapter.method": "gora"},
    "GoRA r32": {"adapter.method": "gora", "adapter.rank": 32, "gora.gamma": 0.01},
    "GoRA r128": {"adapter.method": "gora", "adapter.rank": 128, "gora.gamma": 0.005},
}
# What the ratio of the two learning rates does.
RATES: dict[str, Settings] = {
    "rsLoRA, B at a quarter": {"adapter.method": "rslora", "train.loraplus_lr_ratio": 0.25},
    "GoRA, B at a quarter": {"adapter.method": "gora", "train.loraplus_lr_ratio": 0.25},
    "GoRA, one rate": {"adapter.method": "gora", "train.loraplus_lr_ratio": 1},
}
EQUAL: Settings = {"gora.rank_min": 8, "gora.rank_max": 8}
# What an A of the data's directions does.
DIRECTED = {"adapter.method": "gora", "gora.init_a": "gradient"}
DIRECTIONS: dict[str, Settings] = {
    "EVA": {"adapter.method": "eva"},
    "LoRA-GA as in PEFT, B at a quarter": {"adapter.method": "lora-ga-peft", "train.loraplus_lr_ratio": 0.25},
    "GoRA, A of the gradient": DIRECTED,
    "GoRA, A of the gradient, one rate": {**DIRECTED, "train.loraplus_lr_ratio": 1},
    "GoRA, A of the gradient, B at a quarter": {**DIRECTED, "train.loraplus_lr_ratio": 0.25},
    "GoRA, one rate, equal ranks": {"adapter.method": "gora", "train.loraplus_lr_ratio": 1, **EQUAL},
    "GoRA, A of the gradient, one rate, equal ranks": {**DIRECTED, "train.loraplus_lr_ratio": 1, **EQUAL},
}
MORE: dict[str, Settings] = {
    "MiLoRA": {"adapter.method": "milora"},
    "LoRA-GA": {"adapter.method": "lora-ga"},
    "LoRA-One": {"adapter.method": "lora-one"},
    "LoRA-FA": {"adapter.method": "lora-fa"},
    "rsLoRA r32 with rates of LoRA+": {"adapter.method": "rslora", "adapter.rank": 32, "train.loraplus_lr_ratio": 16},
}
METHODS: dict[str, Settings] = {**PAPER, **RATES, **DIRECTIONS, **MORE}

# One setting is changed at a time: what of a method matters. Each is a method of its own, `METHOD, CHANGE`, and is
# tried around the best learning rate of the unchanged one.
_WARMUP: dict[str, Settings] = {"warm-up 0.2": {"train.warmup_ratio": 0.2}}
_PARTS: dict[str, Settings] = {
    "ranks only": {"gora.gamma": 0},
    "initial values only": EQUAL,
}
_PASS: dict[str, Settings] = {
    "gamma 0.5": {"gora.gamma": 0.5},
    "N 256": {"gora.steps": 256},
    "nuclear norm of G": {"gora.importance": "nuclear-gradient"},
}
CHANGES: dict[str, dict[str, Settings]] = {
    "LoRA": _WARMUP,
    "LoRA-GA as in PEFT": _WARMUP,
    "GoRA": {
        **_PARTS,
        **_PASS,
        "N 8": {"gora.steps": 8},
        "nuclear norm of W * G": {"gora.importance": "nuclear-product"},
        "ranks without bounds": {"gora.rank_min": 0, "gora.rank_max": "unbounded"},
        "alpha 4": {"adapter.alpha": 4},
        "alpha 64": {"adapter.alpha": 64},
        **_WARMUP,
    },
    "GoRA, A of the gradient, B at a quarter": {"from zero": {"gora.gamma": 0}},
    "GoRA, A of the gradient, one rate": {"from zero": {"gora.gamma": 0}, **_PASS, **_WARMUP},
    "GoRA, A of the gradient, one rate, equal ranks": {"from zero": {"gora.gamma": 0}, **_WARMUP},
}

CHANGED: dict[str, tuple[str, Settings]] = {
    f"{method}, {change}": (method, {**METHODS[method], **settings})
    for method, found in CHANGES.items()
    for change, settings in found.items()
}
"""Every change by its name as a method: the method that it changes, and all settings."""

_LANGUAGE: Settings = {
    "data.max_length": 512,
    "data.holdout": 400,
    "train.micro_batch_size": 32,
    "gora.micro_batch_size": 8,
    "distributed": "ddp",
}


@dataclass(frozen=True)
class Set:
    """A data set.

    Attributes:
        recipe: what is adapted.
        settings: for all runs; `{data}` is the data folder.
        methods: what is compared, unless the command line says otherwise.
        changes: whether the changes are tried on it.
        search: for the search for learning rates, which does not look at the rows that count.
        final: for the runs that count.
        tasks: for the runs of methods that count, not for changes.
    """

    recipe: str
    settings: Settings
    methods: dict[str, Settings] = field(default_factory=lambda: PAPER)
    changes: bool = False
    search: Settings = field(default_factory=dict)
    final: Settings = field(default_factory=dict)
    tasks: str = "[]"


def _glue(task: str, methods: dict[str, Settings] = PAPER) -> Set:
    folder = f"{{data}}/glue/{task}"
    rows = {"data.train.path": f"{folder}/train.jsonl", "data.train.subset": "null", "data.train.split": "null"}
    return Set(
        f"glue/{task}",
        {**rows, "data.train.max_rows": 8000},
        methods,
        search={"data.eval": "null", "data.holdout": 500},
        final={"data.eval": f"{{path: {folder}/validation.jsonl, max_rows: 1000}}"},
        tasks=f"[{{name: glue/{task}, path: {folder}/validation.jsonl, max_rows: 2000}}]",
    )


_COMPARED = {**PAPER, **RATES, **DIRECTIONS}
SETS = {
    "math": Set(
        "metamathqa-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/metamathqa_standin/train.jsonl"},
        METHODS,
        changes=True,
        tasks="[{name: gsm8k, path: {data}/gsm8k/test.jsonl, max_new_tokens: 256}]",
    ),
    "code": Set(
        "code-feedback-llama3.1-8b",
        # The stand-in has fenced code in a few rows only.
        {**_LANGUAGE, "data.train.path": "{data}/code_feedback_standin/train.jsonl", "data.supervise": "response"},
        _COMPARED,
        changes=True,
    ),
    "instruction": Set(
        "wizardlm-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/wizardlm_70k_standin/train.jsonl"},
        _COMPARED,
        changes=True,
    ),
    "glue/sst2": _glue("sst2", _COMPARED),
    **{f"glue/{task}": _glue(task) for task in ("cola", "mrpc", "qnli", "mnli")},
}
