"""The runs behind docs/results.md, from nothing to raw data.

    python scripts/results/sets.py DATA MODEL SETS
    python scripts/results/evidence.py --model MODEL --sets SETS --work FOLDER --output evidence.json --table tools
    python scripts/results/evidence.py ... --table fair
    python scripts/results/evidence.py ... --table paper
    python scripts/results/page.py

Without `--table` all are run together, the most valuable cells first (`cells.py`). Runs are made by gora's own
stages, several at a time on each GPU, each worker process one after another. Finished runs are kept in OUTPUT and not
repeated, so that it can be stopped at any time and started again; what was not run stays empty. With `--minutes` no run
is begun that would not be done by then, as far as runs of the same kind tell.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import yaml
from cells import ABLATIONS, AUTO, AUTO_LORA, METHODS, PAPER_METHODS, TABLES, TARGETS, TOOLS, Cell, Run, plan
from sets import SETS

RECIPES = Path(__file__).parents[2] / "recipes" / "defaults"
EVALUATED, ASKED_AT_A_TIME, TRIES = 64, 64, 3
POLL = 5.0
PRELOADED = [
    "gora.stages.run",
    "gora.stages.evaluate",
    "gora.methods",
    "gora.training.loop",
    "peft",
    "transformers.models.llama",
]
"""What a run imports; no GPU is begun with."""
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


def start(device: str, muted: bool) -> None:
    """Give a worker its GPU, before it knows of any."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = "1"
    if muted:
        from gora.runtime.console import output

        output.mute()


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


def main() -> None:
    """All cells, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--sets", type=Path, required=True, help="what sets.py made")
    parser.add_argument("--work", type=Path, required=True, help="for runs, which are deleted when they are finished")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="append", choices=TABLES, help="may be repeated")
    parser.add_argument("--only", help="cells whose names hold this")
    parser.add_argument("--workers", type=int, default=1, help="on each device")
    parser.add_argument(
        "--devices",
        default="",
        help="numbers of GPUs, with commas between; or a file with them, to which more may be added while runs go on",
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="end by then")
    parser.add_argument("--steps", type=int, help="instead of one epoch, to try it out")
    parser.add_argument("--first-of-each", action="store_true", help="one cell of each kind, to try it out")
    parser.add_argument("--loud", action="store_true", help="print what the runs print")
    given = parser.parse_args()
    found: dict[str, Run] = json.loads(given.output.read_text()) if given.output.exists() else {}
    end = time.monotonic() + 60 * given.minutes
    context, workers = context_of_workers(), list[Worker]()
    running: dict[Future[Run], tuple[Cell, Worker]] = {}
    tried: set[tuple[str, str, str]] = set()
    times: Counter[str] = Counter()

    def ready() -> Iterator[Cell]:
        """Cells to begin with now, each once."""
        begun, seconds = {str(cell) for cell, _ in running.values()} | found.keys(), longest(found)
        for cell in plan(found, given.table or TABLES):
            kind = (cell.table, cell.targets, cell.method)
            if str(cell) in begun or (given.only is not None and given.only not in str(cell)):
                continue
            if time.monotonic() + seconds.get(cell.method, 0.0) > end or (given.first_of_each and kind in tried):
                continue
            begun.add(str(cell))
            tried.add(kind)
            yield cell

    def fill() -> None:
        for device in devices_of(given.devices)[len(workers) // given.workers :]:
            workers.extend(Worker(device, not given.loud, context) for _ in range(given.workers))
        busy = [worker for _, worker in running.values()]
        free = [worker for worker in workers if worker not in busy]
        for cell, worker in zip(islice(ready(), len(free)), free, strict=False):
            recipe = recipe_of(cell, given.model, given.sets, given.steps)
            folder = given.work / "".join(letter if letter.isalnum() else "_" for letter in str(cell))
            base_too = cell.method == AUTO and cell.seed == 1
            running[worker.submit(recipe, str(folder), base_too)] = cell, worker

    fill()
    while running:
        finished, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
        for future in finished:
            cell, worker = running.pop(future)
            broken = future.exception()
            result = {"failed": f"the process ended: {broken}", "seconds": 0.0} if broken else future.result()
            times[str(cell)] += 1
            failed = result.get("failed", "")
            if broken or "CUDA error" in failed:
                worker.begin()
            if (broken or "CUDA" in failed or "memory" in failed.lower()) and times[str(cell)] < TRIES:
                # Its neighbours on the GPU may have taken the memory: that says nothing of the method.
                print(f"{cell}: again, {failed[:200]}", flush=True)
                continue
            found[str(cell)] = result
            text = failed or f"{result['loss']['final']:.4f} ({result['loss']['base']:.4f})"
            print(f"{cell}: {text} {result['seconds']:.0f} s", flush=True)
        if finished:
            _keep(given.output, found)
        fill()
    for worker in workers:
        worker.pool.shutdown()


def context_of_workers() -> BaseContext:
    """Starts processes that share what one of them has imported, which takes each of many a minute otherwise."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else asking for a GPU would keep forked processes from it
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as pool:
        return multiprocessing.get_context("spawn") if pool.submit(cannot_fork).result() else context


def cannot_fork() -> bool:
    """Whether a GPU was begun with before this process was forked."""
    import torch

    return bool(torch.cuda._is_in_bad_fork())


def devices_of(told: str) -> list[str]:
    """The numbers of GPUs that are given, or are in a file by now."""
    path = Path(told)
    text = path.read_text() if told and path.is_file() else told
    return text.replace("\n", ",").strip(",").split(",")


class Worker:
    """A process that makes one run after the other.

    Args:
        device: the number of its GPU, or nothing.
        muted: whether it prints nothing of its runs.
        context: starts processes.
    """

    def __init__(self, device: str, muted: bool, context: BaseContext) -> None:
        self._device, self._muted, self._context = device, muted, context
        self.begin()

    def begin(self) -> None:
        """A new process, in the place of one that has come to harm."""
        self.pool = ProcessPoolExecutor(1, self._context, initializer=start, initargs=(self._device, self._muted))

    def submit(self, recipe: dict[str, Any], folder: str, base_too: bool) -> Future[Run]:
        """See `run_one`."""
        return self.pool.submit(run_one, recipe, folder, base_too)


def longest(found: Mapping[str, Run]) -> dict[str, float]:
    """Seconds of the longest run so far, by method."""
    seconds: dict[str, float] = {}
    for name, run in found.items():
        method = name.split(" | ")[3]
        seconds[method] = max(run["seconds"], seconds.get(method, 0.0))
    return seconds


def _keep(path: Path, found: dict[str, Run]) -> None:
    """Written aside first, so that whoever stops this loses nothing."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(found))
    aside.replace(path)


if __name__ == "__main__":
    main()
