"""Every method on real data, each at its own best learning rate: the runs behind docs/results.md.

    python scripts/results/run.py MODEL DATA OUTPUT
    python scripts/results/tables.py results.json OUTPUT

MODEL is a causal language model of any size, DATA a folder with the sets named in `catalogue.py`. A set begins
with one seed of every method at three learning rates; where the best of them was the least or the greatest, the next
one is tried as well, and then the two half-way to the best one's neighbours. Changes of one setting are tried around
the best rate of the method that they change. Then come three other seeds at each one's best rate, with the set's task.
All runs are made by `gora compare`, whose commands and tables are kept beside its results. Finished runs are not
repeated: whoever stops it starts it again. Figures of an earlier results.json (`--known`) are not made again either.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from catalogue import CHANGED, METHODS, SETS, Settings

START = (3e-4, 1e-3, 3e-3)
_COARSE, _FINE = (1, 3), (1, 1.8, 3, 5.6)
Losses = dict[str, dict[str, float | None]]
"""By method and learning rate; None where training diverged."""


def main() -> None:
    """All sets, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="and what changes one setting of them")
    parser.add_argument("--without-changes", action="store_true", help="methods only")
    parser.add_argument("--rates", nargs="+", type=float, default=START, help="the first ones to try")
    parser.add_argument("--rounds", type=int, default=2, help="how often the rates may be extended")
    parser.add_argument("--search-seed", default="0")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--known", type=Path, help="results.json of earlier runs")
    parser.add_argument("--together", type=int, default=4, help="sets at a time")
    parser.add_argument("--jobs", type=int, default=4, help="runs of a set at a time on each device")
    parser.add_argument("--set", dest="more", action="append", default=[], help="for all runs, as gora takes it")
    given = parser.parse_args()
    known = json.loads(given.known.read_text()) if given.known else {}
    with ThreadPoolExecutor(given.together) as pool:
        for work in [pool.submit(run_set, name, known.get(name.replace("/", "-"), {}), given) for name in given.sets]:
            work.result()


def run_set(name: str, known: dict[str, Any], given: argparse.Namespace) -> None:
    """The search for learning rates, then the seeds: of the methods, and of what changes them."""
    folder = given.output / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(name, folder / "search", known.get("search", {}), given)
    methods = {method: METHODS[method] for method in given.methods or SETS[name].methods}
    best = search.wide(methods)
    run_seeds(name, folder / "final", methods, best, known, given, tasks=SETS[name].tasks)
    if SETS[name].changes and not given.without_changes:
        changes = {change: settings for change, (method, settings) in CHANGED.items() if method in best}
        around = search.near(changes, {change: best[CHANGED[change][0]] for change in changes})
        run_seeds(name, folder / "changed", changes, around, known, given)


class Search:
    """Learning rates on one seed, by the least evaluation loss; what was found is kept in `search.json`.

    Args:
        name: the set.
        folder: of the runs.
        known: losses of earlier runs by method and rate; None where training diverged.
        given: the command line.
    """

    def __init__(self, name: str, folder: Path, known: Losses, given: argparse.Namespace) -> None:
        self._name, self._folder, self._given = name, folder, given
        self._file = folder.with_suffix(".json")
        self._found: Losses = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._losses = losses_merged(known, self._found)

    def wide(self, methods: Mapping[str, Settings]) -> dict[str, float]:
        """The best rate of each, in steps of about 3 and then of about 1.8; without those that never worked."""
        best = self._measure(methods, {method: set(self._given.rates) for method in methods})
        for _ in range(self._given.rounds):
            further = {method: self._beyond(method, rate) for method, rate in best.items()}
            if not any(further.values()):
                break
            best = self._measure(methods, further)
        return self._measure(methods, {method: neighbours(rate, _FINE) for method, rate in best.items()})

    def near(self, methods: Mapping[str, Settings], rates: Mapping[str, float]) -> dict[str, float]:
        """The best rate of each among the one given and its neighbours in steps of about 1.8."""
        return self._measure(methods, {method: {rate} | neighbours(rate, _FINE) for method, rate in rates.items()})

    def _measure(self, methods: Mapping[str, Settings], rates: Mapping[str, set[float]]) -> dict[str, float]:
        variants = {
            labelled(method, rate): {**methods[method], "train.learning_rate": rate}
            for method, tried in rates.items()
            for rate in sorted(tried)
            if f"{rate:g}" not in self._losses.get(method, {})
        }
        if variants:
            search = SETS[self._name].search
            compare(self._name, self._folder, variants, self._given.search_seed, search, self._given)
            for label, loss in losses_found(self._folder / "comparison.json").items():
                method, _, rate = label.rpartition(" at ")
                self._found.setdefault(method, {})[rate] = loss
            self._file.write_text(json.dumps(self._found, indent=1) + "\n")
            self._losses = losses_merged(self._losses, self._found)
        return {method: best for method in methods if (best := least(self._losses.get(method, {}))) is not None}

    def _beyond(self, method: str, best: float) -> set[float]:
        """The next rate where the best one is at an end of those tried."""
        tried = [float(rate) for rate in self._losses[method]]
        return {rate for rate in neighbours(best, _COARSE) if rate < min(tried) or rate > max(tried)}


def losses_merged(first: Losses, then: Losses) -> Losses:
    """Losses of both; where both have one, that of the second."""
    return {method: {**first.get(method, {}), **then.get(method, {})} for method in dict.fromkeys((*first, *then))}


def neighbours(rate: float, digits: tuple[float, ...]) -> set[float]:
    """The next lower and the next higher rate with such a first digit, of a rate that has one."""
    steps = [float(f"{digit}e{power}") for power in range(-6, 2) for digit in digits]
    place = min(range(len(steps)), key=lambda index: abs(math.log(steps[index] / rate)))
    return {steps[place - 1], steps[place + 1]}


def least(losses: Mapping[str, float | None]) -> float | None:
    """The rate of the least loss, or None if none is known."""
    worked = {float(rate): loss for rate, loss in losses.items() if loss is not None}
    return min(worked, key=worked.__getitem__) if worked else None


def labelled(method: str, rate: float) -> str:
    """The label of a method at a rate."""
    return f"{method} at {rate:g}"


def losses_found(path: Path) -> dict[str, float | None]:
    """Evaluation loss by label, None where training diverged; runs that failed of something else are left out."""
    rows = json.loads(path.read_text())
    diverged = {row["label"] for row in rows if any(why["code"] == "not-finite" for why in row["failures"])}
    found = {row["label"]: row["loss"]["mean"] if row["loss"] else None for row in rows}
    return {label: loss for label, loss in found.items() if loss is not None or label in diverged}


def run_seeds(
    name: str,
    folder: Path,
    methods: Mapping[str, Settings],
    rates: Mapping[str, float],
    known: dict[str, Any],
    given: argparse.Namespace,
    *,
    tasks: str = "[]",
) -> None:
    """All seeds at the best rates, where earlier runs do not have them."""
    variants = {
        labelled(method, rate): {**methods[method], "train.learning_rate": rate}
        for method, rate in rates.items()
        if not is_known(known.get("final", {}).get(method), rate, given.seeds, tasks)
    }
    if variants:
        compare(name, folder, variants, given.seeds, {**SETS[name].final, "evaluation.tasks": tasks}, given)


def is_known(found: dict[str, Any] | None, rate: float, seeds: str, tasks: str) -> bool:
    """Whether earlier runs were made at this rate, with all seeds and tasks."""
    if found is None or found["learning_rate"] != rate:
        return False
    done = {run["seed"] for run in found["runs"] if tasks == "[]" or run.get("tasks")}
    return done >= {int(seed) for seed in seeds.split(",")}


def compare(
    name: str,
    output: Path,
    variants: dict[str, Settings],
    seeds: str,
    settings: Settings,
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
    print(f"{name}: {output.name}, {len(variants)} variants, seeds {seeds}", flush=True)
    with open(output.with_suffix(".log"), "a", encoding="utf-8") as log:
        print("$ gora", shlex.join(command), file=log, flush=True)
        done = subprocess.run([sys.executable, "-m", "gora", *command], stdout=log, stderr=log, check=False)
    # 1: some runs failed, which comparison.json tells by their codes.
    if done.returncode not in (0, 1) or not (output / "comparison.json").exists():
        sys.exit(f"gora compare ended with exit code {done.returncode}; see {output.with_suffix('.log')}")


if __name__ == "__main__":
    main()
