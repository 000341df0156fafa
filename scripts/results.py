"""Every method on real data, each at its own best learning rate: the runs behind docs/results.md.

    python scripts/results.py MODEL DATA OUTPUT
    python scripts/results_tables.py OUTPUT results.json

MODEL is a causal language model of any size, DATA a folder with the sets named in `SETS`. A set begins with one seed of
every method at three learning rates; where the best of them was the least or the greatest, the next one is tried as
well. Then come three other seeds at the best rate, with the set's task. All runs are made by `gora compare`, whose
commands and tables are kept beside its results. Finished runs are not repeated: whoever stops it starts it again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PAPER = {
    "full": {"adapter.method": "full"},
    "LoRA": {"adapter.method": "lora"},
    "rsLoRA": {"adapter.method": "rslora"},
    "DoRA": {"adapter.method": "dora"},
    "LoRA+": {"adapter.method": "lora+"},
    "OLoRA": {"adapter.method": "olora"},
    "PiSSA": {"adapter.method": "pissa"},
    "LoRA-GA": {"adapter.method": "lora-ga"},
    "AdaLoRA": {"adapter.method": "adalora"},
    "LoRA-Pro": {"adapter.method": "lora-pro"},
    "rsLoRA with rates of LoRA+": {"adapter.method": "rslora", "train.loraplus_lr_ratio": 16},
    "GoRA": {"adapter.method": "gora"},
    "GoRA r32": {"adapter.method": "gora", "adapter.rank": 32, "gora.gamma": 0.01},
    "GoRA r128": {"adapter.method": "gora", "adapter.rank": 128, "gora.gamma": 0.005},
}
# What the ratio of the two learning rates does.
RATES = {
    "rsLoRA, B at a quarter": {"adapter.method": "rslora", "train.loraplus_lr_ratio": 0.25},
    "GoRA, B at a quarter": {"adapter.method": "gora", "train.loraplus_lr_ratio": 0.25},
    "GoRA, one rate": {"adapter.method": "gora", "train.loraplus_lr_ratio": 1},
}
# What an A of the data's directions does.
DIRECTIONS = {
    "EVA": {"adapter.method": "eva"},
    "LoRA-GA, B at a quarter": {"adapter.method": "lora-ga", "train.loraplus_lr_ratio": 0.25},
    "GoRA, A of the gradient": {"adapter.method": "gora", "gora.init_a": "gradient"},
    "GoRA, A of the gradient, one rate": {
        "adapter.method": "gora",
        "gora.init_a": "gradient",
        "train.loraplus_lr_ratio": 1,
    },
    "GoRA, A of the gradient, B at a quarter": {
        "adapter.method": "gora",
        "gora.init_a": "gradient",
        "train.loraplus_lr_ratio": 0.25,
    },
    "GoRA, A of the gradient, B at a quarter, from zero": {
        "adapter.method": "gora",
        "gora.init_a": "gradient",
        "gora.gamma": 0,
        "train.loraplus_lr_ratio": 0.25,
    },
}
MORE = {
    "MiLoRA": {"adapter.method": "milora"},
    "LoRA-FA": {"adapter.method": "lora-fa"},
    "GoRA, ranks only": {"adapter.method": "gora", "gora.gamma": 0},
    "GoRA, initial values only": {"adapter.method": "gora", "gora.rank_min": 8, "gora.rank_max": 8},
    "rsLoRA r32 with rates of LoRA+": {"adapter.method": "rslora", "adapter.rank": 32, "train.loraplus_lr_ratio": 16},
}
METHODS: dict[str, dict[str, Any]] = {**PAPER, **RATES, **DIRECTIONS, **MORE}
START = (3e-4, 1e-3, 3e-3)

_LANGUAGE = {
    "data.max_length": 512,
    "data.holdout": 400,
    "train.micro_batch_size": 64,
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
        search: for the search for learning rates, which does not look at the rows that count.
        final: for the runs that count.
    """

    recipe: str
    settings: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: PAPER)
    search: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)


def _glue(task: str, methods: dict[str, dict[str, Any]] = PAPER) -> Set:
    folder = f"{{data}}/glue/{task}"
    rows = {"data.train.path": f"{folder}/train.jsonl", "data.train.subset": "null", "data.train.split": "null"}
    return Set(
        f"glue/{task}",
        {**rows, "data.train.max_rows": 8000},
        methods,
        search={"data.eval": "null", "data.holdout": 500},
        final={
            "data.eval": f"{{path: {folder}/validation.jsonl, max_rows: 1000}}",
            "evaluation.tasks": f"[{{name: glue/{task}, path: {folder}/validation.jsonl, max_rows: 2000}}]",
        },
    )


SETS = {
    "math": Set(
        "metamathqa-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/metamathqa_standin/train.jsonl"},
        methods=METHODS,
        final={"evaluation.tasks": "[{name: gsm8k, path: {data}/gsm8k/test.jsonl, max_new_tokens: 256}]"},
    ),
    "code": Set(
        "code-feedback-llama3.1-8b",
        # The stand-in has fenced code in a few rows only.
        {**_LANGUAGE, "data.train.path": "{data}/code_feedback_standin/train.jsonl", "data.supervise": "response"},
        {**PAPER, **RATES, **DIRECTIONS},
    ),
    "instruction": Set(
        "wizardlm-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/wizardlm_70k_standin/train.jsonl"},
        {**PAPER, **RATES, **DIRECTIONS},
    ),
    "glue/sst2": _glue("sst2", {**PAPER, **RATES, **DIRECTIONS}),
    **{f"glue/{task}": _glue(task) for task in ("cola", "mrpc", "qnli", "mnli")},
}


def main() -> None:
    """All sets, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--rates", nargs="+", type=float, default=START, help="the first ones to try")
    parser.add_argument("--rounds", type=int, default=2, help="how often the rates may be extended")
    parser.add_argument("--search-seed", default="0")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--together", type=int, default=4, help="sets at a time")
    parser.add_argument("--jobs", type=int, default=4, help="runs of a set at a time on each device")
    parser.add_argument("--set", dest="more", action="append", default=[], help="for all runs, as gora takes it")
    given = parser.parse_args()
    with ThreadPoolExecutor(given.together) as pool:
        for work in [pool.submit(run_set, name, given) for name in given.sets]:
            work.result()


def run_set(name: str, given: argparse.Namespace) -> None:
    """The search for learning rates, then the seeds."""
    folder = given.output / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    rates = best_rates(name, folder, given)
    variants = {
        f"{method} at {rate:g}": {**METHODS[method], "train.learning_rate": rate} for method, rate in rates.items()
    }
    compare(name, folder / "final", variants, given.seeds, SETS[name].final, given)


def best_rates(name: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """The learning rate with the least evaluation loss on one seed; a method that never worked is left out."""
    tried = {method: set(given.rates) for method in given.methods or SETS[name].methods}
    for _ in range(given.rounds + 1):
        variants = {
            f"{method} at {rate:g}": {**METHODS[method], "train.learning_rate": rate}
            for method, rates in tried.items()
            for rate in sorted(rates)
        }
        compare(name, folder / "search", variants, given.search_seed, SETS[name].search, given)
        losses = losses_found(folder / "search" / "comparison.json")
        best = {method: min(losses[method], key=losses[method].__getitem__) for method in tried if losses.get(method)}
        further = {method: beyond(rate, tried[method]) for method, rate in best.items()}
        if not any(further.values()):
            break
        for method, rates in further.items():
            tried[method] |= rates
    return best


def losses_found(path: Path) -> dict[str, dict[float, float]]:
    """Evaluation loss of each method at each learning rate, where the run worked."""
    losses: dict[str, dict[float, float]] = {}
    for row in json.loads(path.read_text()):
        method, _, rate = row["label"].rpartition(" at ")
        if row["loss"] and math.isfinite(row["loss"]["mean"]):
            losses.setdefault(method, {})[float(rate)] = row["loss"]["mean"]
    return losses


def beyond(best: float, tried: set[float]) -> set[float]:
    """The next rate where the best one is at an end of those tried; rates go up by turns of 3 and 10/3."""
    steps = [round(digit * 10.0**power, 12) for power in range(-6, 2) for digit in (1, 3)]
    place = min(range(len(steps)), key=lambda index: abs(math.log(steps[index] / best)))
    neighbours = {steps[place - 1], steps[place + 1]}
    return {rate for rate in neighbours if rate < min(tried) or rate > max(tried)}


def compare(
    name: str,
    output: Path,
    variants: dict[str, dict[str, Any]],
    seeds: str,
    settings: dict[str, Any],
    given: argparse.Namespace,
) -> None:
    """One `gora compare`; what it prints goes to a file."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"share_gradients": True, "variants": variants}, sort_keys=False))
    common = {"model.name": given.model, "evaluation.steps": "null", "train.save_steps": "null"}
    common |= {"evaluation.batch_size": 512, **SETS[name].settings, **settings}
    overrides = [f"{key}={value}".replace("{data}", str(given.data)) for key, value in common.items()] + given.more
    command = ["compare", SETS[name].recipe, "--variants", str(file), "--seeds", seeds, "--jobs", str(given.jobs)]
    command += ["--output", str(output), *(part for setting in overrides for part in ("--set", setting))]
    print(f"{name}: {len(variants)} variants, seeds {seeds}", flush=True)
    with open(output.with_suffix(".log"), "a", encoding="utf-8") as log:
        print("$ gora", shlex.join(command), file=log, flush=True)
        subprocess.run([sys.executable, "-m", "gora", *command], stdout=log, stderr=log, check=True)


if __name__ == "__main__":
    main()
