"""The runs of the study: several share each GPU, in processes that stay."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from vision_search import AUTO, Job, Result, Results

GRADIENT = ("gora.init_a=gradient", "gora.gamma=auto", "gora.steps=auto", "train.loraplus_lr_ratio=1")
METHODS: dict[str, tuple[str, ...]] = {
    AUTO: ("adapter.method=gora",),
    "full": ("adapter.method=full",),
    "lora": ("adapter.method=lora",),
    "gora paper": ("adapter.method=gora", "gora.steps=64", "gora.micro_batch_size=8"),
    "dora": ("adapter.method=lora", "adapter.dora=true"),
    "lora+": ("adapter.method=lora+",),
    "lora-ga": ("adapter.method=lora-ga",),
    "gora, A from gradients": ("adapter.method=gora", "gora.micro_batch_size=8", *GRADIENT),
    "lora-pro": ("adapter.method=lora-pro",),
}
AUTO_RECIPE = """\
model: {{name: {base}, head: image-classification, dtype: float32}}
data:
  format: image
  train: {{path: {train}}}
  holdout: 200
  cache: {rows}
train: {{precision: fp32, save_minutes: null}}
evaluation: {{micro_batch_size: 200}}
"""
RECIPE = """\
preset: paper
model: {{name: {base}, head: image-classification, dtype: float32}}
data:
  format: image
  train: {{path: {train}}}
  holdout: 200
  cache: {rows}
adapter: {{targets: all-linear, rank: 8, alpha: 16}}
train:
  {{batch_size: 64, micro_batch_size: 64, weight_decay: 0.0, min_lr_ratio: 0.0, precision: fp32, save_minutes: null}}
evaluation: {{micro_batch_size: 200}}
"""


class Workers:
    """Processes that each hold one GPU's share."""

    def __init__(self, given: argparse.Namespace) -> None:
        gpus = _gpus()
        context = multiprocessing.get_context("spawn")
        places = context.Queue()
        count = given.each * max(gpus, 1)
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        for number in range(count):
            places.put(names[number % gpus] if gpus else "")
        logs = given.output / "logs"
        logs.mkdir(exist_ok=True)
        self._given = given
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(places, str(logs)))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, pairs: list[tuple[str, str]], results: Results) -> None:
        """Do what is not done for these sets and methods; what comes next follows from what has come in."""
        begun: set[Job] = set()
        running: set[Future[Result]] = set()

        def begin(kind: str, method: str) -> None:
            for job in results.next(kind, method, self._given):
                if job not in begun:
                    begun.add(job)
                    running.add(self._pool.submit(_do, job, self._given))

        for pair in pairs:
            begin(*pair)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                results.add(result)
                shown = [str(result.get(key)) for key in ("set", "method", "rate", "seed", "loss", "accuracy", "error")]
                print(f"{len(results.runs)}, {len(running)} begun:", *shown, flush=True)
                begin(result["set"], result["method"])


def _gpus() -> int:
    # Asked for in a process of its own: this one forks nothing, and its children choose their GPU.
    import torch

    return torch.cuda.device_count()


def _begin(places: Any, logs: str) -> None:
    gpu = places.get()
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    log = open(f"{logs}/{os.getpid()}.log", "w", buffering=1)  # noqa: SIM115 - for as long as the process
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _do(job: Job, given: argparse.Namespace) -> Result:
    kind, method, rate, seed = job
    result: Result = {"set": kind, "method": method, "rate": rate, "seed": seed}
    begin = time.monotonic()
    try:
        result |= _measured(kind, method, rate, seed, given)
    except Exception as error:  # one run of many
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    return {**result, "seconds": round(time.monotonic() - begin, 1)}


def _measured(kind: str, method: str, rate: float, seed: int, given: argparse.Namespace) -> Result:
    import gora.training.trainer as trainer
    from gora.evaluation.task import Options
    from gora.recipe import load_recipe
    from gora.stages.evaluate import Job, evaluate, task_jobs
    from gora.stages.run import run

    # Many runs share the cores.
    trainer.loader_workers = lambda *_: 1 if sys.platform == "linux" and os.environ.get("CUDA_VISIBLE_DEVICES") else 0
    folder = given.output / "runs" / f"{kind}-{method.replace(' ', '-')}-{rate:g}-{seed}"
    train = given.output / ("cifar-train.parquet" if kind == "cifar" else "digits/train")
    test = given.output / ("cifar-test.parquet" if kind == "cifar" else "digits/test")
    recipe = given.output / f"{kind}-{'auto' if method == AUTO else 'paper'}.yaml"
    settings = [
        *METHODS[method],
        *([f"train.learning_rate={rate}"] if rate else []),
        f"seed={seed}",
        f"output={folder}",
        f"train.epochs={given.epochs}",
        *given.more,
    ]
    if not recipe.exists():
        aside = recipe.with_suffix(f".{os.getpid()}")
        known = {"base": given.output / "base", "train": train, "rows": given.output / "rows"}
        aside.write_text((AUTO_RECIPE if method == AUTO else RECIPE).format(**known))
        aside.replace(recipe)
    run(load_recipe(str(recipe), settings).recipe, mode="overwrite" if folder.exists() else "new")
    tasks = task_jobs(["image"], Options(folder=Path(), data=str(test)))
    scores = evaluate(str(folder), Job(tasks=tasks, batch_size=256))["image"]["trained"]
    found = json.loads((folder / "results.json").read_text())
    ran = load_recipe(str(folder / "recipe.yaml"), []).recipe
    return {
        "rate_found": ran.train.learning_rate,
        "loss": found["loss"]["final"],
        "accuracy": scores.metrics["accuracy"],
        "trainable": found["trainable_parameters"],
        "training_seconds": found["seconds"],
        "versions": found["versions"],
    }
