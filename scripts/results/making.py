"""How one cell of the evidence is run: its recipe, and what is kept of what came of it."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from cells import ABLATIONS, AUTO, AUTO_LORA, METHODS, PAPER_METHODS, TARGETS, TOOLS, Cell, Run
from sets import SETS

RECIPES = Path(__file__).parents[2] / "recipes" / "defaults"
EVALUATED, ASKED_AT_A_TIME = 64, 64
SETTINGS = METHODS | PAPER_METHODS | ABLATIONS


def recipe_of(cell: Cell, model: str, sets: Path, steps: int | None = None) -> dict[str, Any]:
    """The recipe of a cell, but for its folder."""
    one, folder = SETS[cell.rows], sets / ("first" if cell.table == "again" else "") / cell.rows
    recipe: dict[str, Any] = {
        "preset": "paper",
        "seed": cell.seed,
        "model": {"name": model},
        "data": {
            "train": {"path": str(folder / "train.jsonl")},
            "eval": {"path": str(folder / ("choose.jsonl" if cell.searches else "test.jsonl"))},
            "max_length": 256,
            "overlong": "drop",
            **one.data,
        },
        "adapter": {},
        "gora": {},
        "train": {"kernels": "fused", "save_minutes": None, "log_steps": 25},
        "evaluation": {
            "micro_batch_size": EVALUATED,
            "batch_size": ASKED_AT_A_TIME,
            "tasks": tasks_of(cell, sets),
        },
    }
    if cell.method in TOOLS:
        written = yaml.safe_load((RECIPES / f"{cell.method}.yaml").read_text(encoding="utf-8"))
        recipe["adapter"] |= written["adapter"]
        recipe["train"] |= written["train"]
        # A step is the same in one micro-batch.
        recipe["train"]["micro_batch_size"] = written["train"]["batch_size"]
    elif cell.method in (AUTO, AUTO_LORA):
        recipe |= {"preset": "auto", "adapter": {"method": "lora" if cell.method == AUTO_LORA else "gora"}}
        recipe["train"]["micro_batch_size"] = 16
    else:
        settings = {
            **TARGETS[cell.targets],
            "train.batch_size": 16,
            "train.micro_batch_size": 16,
            "train.learning_rate": cell.rate,
            **SETTINGS[cell.method],
        }
        if cell.method == "full":
            del settings["adapter.rank"]
            settings.pop("adapter.parameters", None)
        for key, value in settings.items():
            *sections, name = key.split(".")
            (recipe[sections[0]] if sections else recipe)[name] = value
    if steps is not None:
        recipe["train"]["max_steps"] = steps
    return recipe


def tasks_of(cell: Cell, sets: Path) -> list[dict[str, Any]]:
    """What a run closes with: choices where a set has them; answers of many tokens are asked of few runs only."""
    one = SETS[cell.rows]
    asked = "gsm8k" if cell.table == "answers" else "choice"
    if one.task != asked or cell.searches or cell.table not in ("tools", "fair", "answers"):
        return []
    more: dict[str, Any] = {"max_new_tokens": 200} if asked == "gsm8k" else {"columns": one.columns}
    return [
        {"name": one.task, "label": name, "path": str(sets / cell.rows / f"{name}.jsonl"), **more}
        for name in one.sources
    ]


def run_one(recipe: dict[str, Any], folder: str, base_too: bool) -> Run:
    """One run; what came of it, or why nothing did."""
    begin = time.monotonic()
    path = Path(f"{folder}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**recipe, "output": folder}))
    from gora.runtime.out_of_memory import release_memory

    try:
        found = _results(path, Path(folder), base_too)
    except Exception as error:  # a rate at which training falls apart, for one
        found = {"failed": f"{type(error).__name__}: {error}"[:400]}
    shutil.rmtree(folder, ignore_errors=True)
    release_memory()
    return {**found, "seconds": round(time.monotonic() - begin, 1), "device": _device()}


def _results(path: Path, folder: Path, base_too: bool) -> Run:
    from gora.recipe import load_recipe
    from gora.stages.evaluate import closing_job, evaluate
    from gora.stages.run import run

    recipe = load_recipe(str(path)).recipe
    run(recipe, mode="overwrite")
    if base_too and recipe.evaluation.tasks:
        job = closing_job(recipe, allow_code_execution=False, trust_remote_code=False)
        evaluate(str(folder), type(job)(tasks=job.tasks, which="base", batch_size=job.batch_size))
    written = json.loads((folder / "results.json").read_text())
    used = yaml.safe_load((folder / "recipe.yaml").read_text())
    return {
        "loss": written["loss"],
        "trainable": written.get("trainable_parameters"),
        "rate": used["train"]["learning_rate"],
        "rank": used["adapter"].get("rank"),
        "versions": written.get("versions"),
        **_decided(folder),
        "tasks": {
            task: {side: _task(one) for side, one in sides.items()} for task, sides in written.get("tasks", {}).items()
        },
    }


def _decided(folder: Path) -> dict[str, str]:
    """What a rate rests on that gora has found."""
    from gora.runs.decisions import RATE
    from gora.runs.folder import RunFolder

    path = RunFolder(folder).decisions
    decisions = json.loads(path.read_text()) if path.exists() else {}
    return {"why": decisions[RATE]["why"]} if RATE in decisions else {}


def _task(one: dict[str, Any]) -> dict[str, Any]:
    """Figures, and which rows were answered right, one digit for each."""
    rows = [json.loads(line) for line in Path(one["rows"]).read_text(encoding="utf-8").splitlines()]
    found = {"metrics": one["metrics"], "right": "".join(str(int(row["correct"])) for row in rows)}
    if "correct_norm" in rows[0]:
        most = max(Counter(row["label"] for row in rows).values())
        # What whoever guesses, or always says the same, would reach.
        found["chance"] = max(most, sum(1 / len(row["choices"]) for row in rows)) / len(rows)
    return found


def _device() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{name}, {platform.node()}"
