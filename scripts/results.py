"""Every method on real data, each at its own best learning rate: the tables of docs/results.md.

    python scripts/results.py MODEL DATA OUTPUT --sets math --phase grid     # one seed, three learning rates
    python scripts/results.py MODEL DATA OUTPUT --sets math --phase final    # three seeds at the best of them

MODEL is a causal language model of any size, DATA a folder with the sets named in `SETS` below. All runs are made by
`gora compare`, whose commands are printed; finished runs are not repeated, so that a phase that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

METHODS = {
    "full": {"adapter.method": "full"},
    "LoRA": {"adapter.method": "lora"},
    "rsLoRA": {"adapter.method": "rslora"},
    "DoRA": {"adapter.method": "dora"},
    "LoRA+": {"adapter.method": "lora+"},
    "OLoRA": {"adapter.method": "olora"},
    "PiSSA": {"adapter.method": "pissa"},
    "MiLoRA": {"adapter.method": "milora"},
    "LoRA-GA": {"adapter.method": "lora-ga"},
    "EVA": {"adapter.method": "eva"},
    "AdaLoRA": {"adapter.method": "adalora"},
    "LoRA-Pro": {"adapter.method": "lora-pro"},
    "LoRA-FA": {"adapter.method": "lora-fa"},
    "rsLoRA, rates of LoRA+": {"adapter.method": "rslora", "train.loraplus_lr_ratio": 16},
    "GoRA, ranks only": {"adapter.method": "gora", "gora.gamma": 0},
    "GoRA, initial values only": {"adapter.method": "gora", "gora.rank_min": 8, "gora.rank_max": 8},
    "GoRA": {"adapter.method": "gora"},
    "GoRA, rank 32": {"adapter.method": "gora", "adapter.rank": 32, "gora.gamma": 0.01},
    "GoRA, rank 128": {"adapter.method": "gora", "adapter.rank": 128, "gora.gamma": 0.005},
}
RATES = (3e-4, 1e-3, 3e-3)

_LANGUAGE = {"data.max_length": 512, "train.micro_batch_size": 64, "gora.micro_batch_size": 8, "distributed": "ddp"}
SETS = {
    "math": (
        "metamathqa-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/metamathqa_standin/train.jsonl", "data.holdout": 400},
    ),
    "code": (
        "code-feedback-llama3.1-8b",
        # The stand-in has fenced code in a few rows only.
        {
            **_LANGUAGE,
            "data.train.path": "{data}/code_feedback_standin/train.jsonl",
            "data.holdout": 400,
            "data.supervise": "response",
        },
    ),
    "instruction": (
        "wizardlm-llama3.1-8b",
        {**_LANGUAGE, "data.train.path": "{data}/wizardlm_70k_standin/train.jsonl", "data.holdout": 400},
    ),
    **{
        f"glue/{task}": (
            f"glue/{task}",
            {
                "data.train.path": "{data}/glue",
                "data.eval.path": "{data}/glue",
                "data.train.max_rows": 8000,
                "data.eval.max_rows": 1000,
                **({"data.eval.split": "validation"} if task == "mnli" else {}),
            },
        )
        for task in ("sst2", "cola", "mrpc", "qnli", "mnli")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--phase", choices=("grid", "final"), required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument(
        "--set", dest="more", action="append", default=[], help="for all runs, as `gora compare` takes it"
    )
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        (grid if given.phase == "grid" else final)(name, given)


def grid(name: str, given: argparse.Namespace) -> None:
    """One seed of every method at every learning rate."""
    variants = write_variants(
        given.output / f"{slug(name)}-methods.yaml", {each: METHODS[each] for each in given.methods}
    )
    rates = ",".join(f"{rate:g}" for rate in given.rates)
    compare(name, given, variants, given.output / f"{slug(name)}-grid", "0", "--vary", f"train.learning_rate={rates}")


def final(name: str, given: argparse.Namespace) -> None:
    """Several seeds of every method at the learning rate with the least loss, and the set's task."""
    rows = json.loads((given.output / f"{slug(name)}-grid" / "comparison.json").read_text())
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        method, _, rate = row["label"].rpartition(" ")
        if row["loss"] and (method not in best or row["loss"]["mean"] < best[method][0]):
            best[method] = (row["loss"]["mean"], rate.partition("=")[2])
    chosen = {
        f"{method} {rate}": {**METHODS[method], "train.learning_rate": float(rate)}
        for method, (_, rate) in best.items()
        if method in given.methods
    }
    variants = write_variants(given.output / f"{slug(name)}-best.yaml", chosen)
    compare(name, given, variants, given.output / slug(name), given.seeds, *closing_task(name, given.data))


def closing_task(name: str, data: Path) -> list[str]:
    """What the runs of the final phase are asked, where the set has a task."""
    if name == "math":
        return ["--set", f"evaluation.tasks=[{{name: gsm8k, path: {data}/gsm8k/test.jsonl, max_new_tokens: 256}}]"]
    if name.startswith("glue/"):
        return ["--set", f"evaluation.tasks=[{{name: {name}, path: {data}/glue}}]"]
    return []


def write_variants(path: Path, variants: dict[str, dict[str, object]]) -> Path:
    """A file for `gora compare --variants`."""
    path.write_text(yaml.safe_dump({"share_gradients": True, "variants": variants}, sort_keys=False))
    return path


def compare(name: str, given: argparse.Namespace, variants: Path, output: Path, seeds: str, *more: str) -> None:
    """Run and print one command."""
    recipe, settings = SETS[name]
    common = {"model.name": given.model, "evaluation.steps": "null", "train.save_steps": "null", **settings}
    overrides = [f"{key}={value}".format(data=given.data) for key, value in common.items()] + given.more
    command = ["compare", recipe, "--variants", str(variants), "--seeds", seeds, "--jobs", str(given.jobs)]
    command += ["--output", str(output), *more, *(part for setting in overrides for part in ("--set", setting))]
    print("$ gora", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "gora", *command], check=True)


def slug(name: str) -> str:
    return name.replace("/", "-")


if __name__ == "__main__":
    main()
