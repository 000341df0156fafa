"""`train.learning_rate: auto` against a grid, on combinations that had no part in how it was chosen.

    python scripts/rates/judge.py --models smollm2=FOLDER base-28m=FOLDER minilm=FOLDER --data FOLDER --work FOLDER \
        --output judged.json

DATA has the sets of `SETS`. Each combination of model, set, targets and method is run with the rate that gora finds,
and then at that rate times each of `FACTORS`. Runs are made by gora's own stages, several at a time on each GPU, each
worker process one after another. Finished runs are kept in OUTPUT, and are not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FACTORS = (0.5, 2.0, 0.25, 4.0, 0.125)
"""In this order: the nearest ones of all combinations come first."""
ROWS, STEPS, HELD_OUT = 16, 150, 256
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
}
PAPER = {"preset": "paper", "adapter.method": "gora", "gora.steps": 16, "gora.micro_batch_size": 8, "adapter.rank": 8}


class Combination(NamedTuple):
    """What is trained: `gora` is the preset's, `gora paper` has 16 times the rate for B and the paper's ranks."""

    model: str
    rows: str
    targets: str
    method: str
    steps: int = STEPS

    def __str__(self) -> str:
        return f"{self.model} {self.rows} {self.targets} {self.method} {self.steps}"


def combinations() -> list[Combination]:
    """Those that are judged."""
    found = [
        *(("smollm2", "math", "attention", method) for method in ("rslora", "dora", "lora-ga", "lora-one")),
        *(("smollm2", "math", "all-linear", method) for method in ("lora+", "dora", "full")),
        *(("smollm2", "code", "attention", method) for method in ("lora-one", "pissa")),
        *(("smollm2", "code", "all-linear", method) for method in ("rslora", "lora+", "gora paper")),
        *(("smollm2", "instruction", "attention", method) for method in ("rslora", "lora+")),
        *(("smollm2", "instruction", "all-linear", method) for method in ("lora+", "dora")),
        ("smollm2", "openbookqa", "attention", "lora"),
        ("smollm2", "openbookqa", "all-linear", "gora"),
        ("base-28m", "math", "attention", "rslora"),
        *(("base-28m", "math", "all-linear", method) for method in ("lora+", "full")),
        *(("base-28m", "code", "attention", method) for method in ("lora", "gora")),
        *(("base-28m", "instruction", "all-linear", method) for method in ("lora", "gora")),
        *(("minilm", "sst2", "all-linear", method, 600) for method in ("rslora", "lora+")),
        ("minilm", "qnli", "all-linear", "rslora", 600),
        *(("minilm", "mnli", "all-linear", method, 600) for method in ("lora", "gora")),
    ]
    return [Combination(*each) for each in found]


def recipe_of(what: Combination, models: dict[str, str], data: Path) -> dict[str, Any]:
    """The recipe of a combination, but for its rate and its folder."""
    rows = dict(SETS[what.rows])
    section: dict[str, Any] = {
        "train": {
            "path": str(data / rows.pop("train")),
            "max_rows": ROWS * what.steps + (0 if "eval" in rows else HELD_OUT),
        },
        "max_length": 256,
        "overlong": "drop",
    }
    if "eval" in rows:
        section["eval"] = {"path": str(data / rows.pop("eval")), "max_rows": HELD_OUT}
    else:
        section["holdout"] = HELD_OUT
    recipe: dict[str, Any] = {
        "preset": "auto",
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


def start(devices: Any, muted: bool) -> None:
    """Give a worker its GPU, before it knows of any."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    os.environ["OMP_NUM_THREADS"] = "1"
    if muted:
        from gora.runtime.console import output

        output.mute()


def run_one(recipe: dict[str, Any], folder: str, rate: float | str) -> dict[str, Any]:
    """One run; what came of it."""
    from gora.recipe import load_recipe
    from gora.runs.folder import RunFolder
    from gora.stages.run import run

    path = Path(f"{folder}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = {**recipe, "train": {**recipe["train"], "learning_rate": rate}, "output": folder}
    path.write_text(yaml.safe_dump(recipe))
    begin = time.monotonic()
    try:
        trained = run(load_recipe(str(path)).recipe, mode="overwrite")
    except Exception as error:  # a rate at which training falls apart, for one
        return {"rate": rate, "failed": f"{type(error).__name__}: {error}"[:300], "seconds": time.monotonic() - begin}
    found: dict[str, Any] = {"rate": rate, "loss": trained.losses, "seconds": time.monotonic() - begin}
    if rate == "auto":
        decision = json.loads(RunFolder(Path(folder)).decisions.read_text())["train.learning_rate"]
        found |= {"rate": decision["value"], "auto": True, "curve": decision["curve"]}
    for weights in [*Path(folder).glob("**/*.safetensors"), *Path(folder).glob("**/*.pt")]:
        weights.unlink()
    return found


def main() -> None:
    """All combinations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", help="combinations whose names hold this")
    parser.add_argument("--steps", type=int, help="instead of those of each combination")
    parser.add_argument("--workers", type=int, default=1, help="on each device")
    parser.add_argument("--devices", default="", help="numbers of GPUs, with commas between")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    parser.add_argument("--loud", action="store_true", help="print what the runs print")
    given = parser.parse_args()
    models = dict(text.split("=", 1) for text in given.models)
    wanted = [each for each in combinations() if given.only is None or given.only in str(each)]
    wanted = [each._replace(steps=given.steps or each.steps) for each in wanted if each.model in models]
    found: dict[str, list[dict[str, Any]]] = json.loads(given.output.read_text()) if given.output.exists() else {}
    end = time.monotonic() + 60 * given.minutes

    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    numbers = given.devices.split(",")
    for _ in range(given.workers):
        for number in numbers:
            devices.put(number)
    waiting: dict[Future[dict[str, Any]], Combination] = {}
    ready: list[tuple[int, int, Combination, float | str]] = []
    with ProcessPoolExecutor(
        given.workers * len(numbers), context, initializer=start, initargs=(devices, not given.loud)
    ) as pool:

        def add(what: Combination, rate: float | str, turn: int) -> None:
            if rate not in [run["rate"] for run in found.get(str(what), [])]:
                heappush(ready, (turn, len(ready) - 1000 * what.steps, what, rate))

        def add_grid(what: Combination, rate: float) -> None:
            for turn, factor in enumerate(FACTORS, 1):
                add(what, float(f"{rate * factor:.3g}"), turn)

        def fill() -> None:
            while ready and len(waiting) < given.workers * len(numbers) and time.monotonic() < end:
                _, _, what, rate = heappop(ready)
                folder = str(given.work / f"{what} {rate}".replace(" ", "_"))
                waiting[pool.submit(run_one, recipe_of(what, models, given.data), folder, rate)] = what

        for what in wanted:
            known = next((run for run in found.get(str(what), []) if run.get("auto")), None)
            if known is None:
                add(what, "auto", 0)
            else:
                add_grid(what, known["rate"])
        fill()
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                what, result = waiting.pop(future), future.result()
                found.setdefault(str(what), []).append(result)
                given.output.write_text(json.dumps(found))
                text = result.get("failed") or f"{result['loss']['final']:.4f} ({result['loss']['base']:.4f})"
                print(f"{what}: {result['rate']} {text} {result['seconds']:.0f} s", flush=True)
                if result.get("auto"):
                    add_grid(what, result["rate"])
            fill()


if __name__ == "__main__":
    main()
