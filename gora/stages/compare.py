"""The same recipe with several methods, seeds and settings, each in a process and a folder of its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.files import write_json, write_text
from gora.methods import METHODS
from gora.recipe import dump_recipe, load_recipe
from gora.recipe.schema import Recipe
from gora.report.comparison import Outcome, comparison_table, markdown, plot_curves, summarize
from gora.runtime.console import output
from gora.runtime.folder import RunFolder
from gora.runtime.interrupt import StopSignal
from gora.runtime.progress import Meter


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        label: what is compared: the method and the varied settings.
        seed: the seed.
        overrides: what `gora run` is told beside the recipe.
        recipe: the resolved recipe.
        folder: its run folder.
    """

    label: str
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe
    folder: RunFolder

    @property
    def finished(self) -> bool:
        """Whether an earlier comparison has run it to the end."""
        return self.folder.evaluation.exists()


def compare(
    reference: str,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    vary: Sequence[str] = (),
    jobs: int = 1,
    destination: Path,
) -> list[Outcome]:
    """Run every combination that is not finished, then write table, figures and curves to the destination.

    Args:
        reference: the recipe, as `gora run` takes it.
        overrides: settings that all runs share.
        methods: values of `adapter.method`; `all` is every one.
        seeds: values of `seed`.
        vary: `section.key=v1,v2`; all combinations are run.
        jobs: runs at a time on each device.
        destination: a folder for the runs and the results.

    Raises:
        InputError: a combination is no valid recipe, or a folder holds a run of other settings.
    """
    trials = _trials(reference, overrides, _methods(methods), seeds, vary, destination)
    for trial in trials:
        _refuse_other_run(trial)
    open_trials = [trial for trial in trials if not trial.finished]
    output.say(f"compare   {len(trials)} runs, {len(trials) - len(open_trials)} of them finished before")
    failures = _run_all(reference, open_trials, jobs)
    outcomes = [_outcome(trial, failures) for trial in trials]
    _publish(outcomes, destination)
    return outcomes


def _methods(wanted: Sequence[str]) -> list[str]:
    if list(wanted) == ["all"]:
        return list(METHODS)
    if unknown := [name for name in wanted if name not in METHODS]:
        raise InputError(f"--methods: {', '.join(unknown)} is none of {', '.join(METHODS)}.")
    return list(wanted)


def _trials(
    reference: str,
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    vary: Sequence[str],
    destination: Path,
) -> list[Trial]:
    axes = [_axis(text) for text in vary]
    trials = []
    for method, *settings in itertools.product(methods, *axes):
        label = " ".join([method, *(setting.rpartition(".")[2] for setting in settings)])
        for seed in seeds:
            folder = destination / "runs" / re.sub(r"[^\w.+=-]+", "_", f"{label} seed={seed}")
            mine = (*overrides, f"adapter.method={method}", *settings, f"seed={seed}", f"output={folder}")
            trials.append(Trial(label, seed, mine, load_recipe(reference, mine).recipe, RunFolder.of(str(folder))))
    return trials


def _axis(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not all(values.split(",")):
        raise InputError(f"--vary {text}: section.key=v1,v2 is expected, as in train.learning_rate=1e-4,5e-4.")
    return [f"{key}={value}" for value in values.split(",")]


def _refuse_other_run(trial: Trial) -> None:
    path = trial.folder.recipe
    if not path.exists():
        return
    # A folder may have been copied from another machine: where it lay does not count.
    same = [re.sub(r"(?m)^output:.*\n", "", text) for text in (path.read_text(), dump_recipe(trial.recipe))]
    if same[0] != same[1]:
        raise InputError(f"{trial.folder.path} holds a run of other settings. Delete it, or give another --output.")


def _run_all(reference: str, trials: Sequence[Trial], jobs: int) -> dict[Path, str]:
    """Run the trials; returns why those that failed did."""
    from torch.cuda import device_count

    places = list(range(device_count() or 1)) * jobs
    free, failures, running = list(places), {}, []
    lock = threading.Lock()

    def run(trial: Trial) -> None:
        with lock:
            place = free.pop(0)
        try:
            process = _start(reference, trial, place, len(places))
            running.append(process)
            code = process.wait()
            if code:
                failures[trial.folder.path] = _reason(trial, code)
        finally:
            with lock:
                free.append(place)
                meter.advance(facts=trial.label)

    with Meter(output, "runs", len(trials)) as meter, ThreadPoolExecutor(len(places)) as pool:
        waiting = [pool.submit(run, trial) for trial in trials]
        try:
            for each in waiting:
                each.result()
        except StopSignal:
            for each in waiting:
                each.cancel()
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            raise
    return failures


def _start(reference: str, trial: Trial, place: int, places: int) -> subprocess.Popen[str]:
    trial.folder.path.mkdir(parents=True, exist_ok=True)
    arguments = [part for setting in trial.overrides for part in ("--set", setting)]
    folder = trial.folder
    begun = folder.plan.exists() or folder.newest_checkpoint() is not None or folder.trained is not None
    command = [sys.executable, "-m", "gora", "run", reference, *arguments, "--resume" if begun else "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
    with open(trial.folder.path / "output.txt", "w", encoding="utf-8") as stream:
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, text=True)


def _reason(trial: Trial, code: int) -> str:
    lines = (trial.folder.path / "output.txt").read_text(encoding="utf-8").strip().splitlines()
    said = [line.removeprefix("gora: ") for line in lines if line.startswith("gora: ")]
    return (said or lines or [f"exit code {code}"])[-1]


def _outcome(trial: Trial, failures: dict[Path, str]) -> Outcome:
    if not trial.finished:
        return Outcome(trial.label, trial.seed, failures.get(trial.folder.path, "it was not run"), {}, [])
    result: dict[str, Any] = json.loads(trial.folder.evaluation.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in trial.folder.metrics.read_text(encoding="utf-8").splitlines()]
    return Outcome(
        trial.label, trial.seed, None, result, [(line["step"], line["loss"]) for line in lines if "loss" in line]
    )


def _publish(outcomes: list[Outcome], destination: Path) -> None:
    rows = summarize(outcomes)
    output.say(comparison_table(rows))
    write_text(destination / "comparison.md", markdown(rows))
    write_json(destination / "comparison.json", [row.as_json() for row in rows])
    made = ["comparison.md", "comparison.json"]
    if plot_curves(outcomes, destination / "comparison.png"):
        made.append("comparison.png")
    output.say(f"results   {', '.join(str(destination / name) for name in made)}")
