"""What short trials see, on searches whose best rate is known: the raw data behind the rule of `gora.probing.trials`.

    python scripts/rates/trials.py --models smollm2=FOLDER base-28m=FOLDER minilm=FOLDER --data FOLDER --work FOLDER \
        --known docs/data/rate-trials.json --output trials.json
    python scripts/rates/choose.py docs/data/rate-trials.json

The searches, and their grids of whole runs, are those of `--known`. Each is opened as `judge.py` opens it, and in the
place of a search for a rate come a range test and nine trials of 16 steps of 16 rows around what it says, on two draws.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from judge import Combination, recipe_of, start

STEPS, ROWS, KEPT = 16, 16, 4
FACTORS = [2 ** (power / 2) for power in range(-4, 5)]
Found = dict[str, Any]


class Seen(Exception):
    """Enough was seen: the run ends."""


def look(what: Combination, models: dict[str, str], data: Path, folder: str) -> Found:
    """A range test's limit, the loss at the start, and the last losses of each trial."""
    from gora.probing import rate as module
    from gora.recipe import load_recipe
    from gora.stages.run import run

    found: Found = {}

    def decide(context: Any, model: Any, lr_ratio: float, steps: int) -> None:
        found.update(_look(context, model, lr_ratio))
        raise Seen

    module.decide = decide
    recipe = recipe_of(what, models, data)
    recipe = {**recipe, "train": {**recipe["train"], "learning_rate": "auto"}, "output": folder}
    path = Path(f"{folder}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    with suppress(Seen):
        run(load_recipe(str(path)).recipe, mode="overwrite")
    return found


def _look(context: Any, model: Any, lr_ratio: float) -> Found:
    from gora.core.learning_rate import annealed, rate_below
    from gora.probing.range_test import STEPS as TESTED
    from gora.probing.range_test import range_test
    from gora.probing.rehearsal import rehearsing, rows_to_rehearse

    def batches(count: int, size: int, turn: int) -> list[list[int]]:
        rows = rows_to_rehearse(context, count * size, turn=turn)
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    with rehearsing(context, model, lr_ratio) as rehearsal:
        limit = range_test(rehearsal, batches(TESTED, 8, 1), whole_weights=False).limit
        guess, drawn = rate_below(limit or 0.3), [batches(STEPS, ROWS, turn) for turn in (2, 3)]
        rehearsal.begin()
        begin = [rehearsal.loss(rows) for rows in drawn[0][:KEPT]]
        trials: list[list[tuple[float, list[float]]]] = [[], []]
        for turn, each in enumerate(drawn):
            for factor in FACTORS:
                rehearsal.begin()
                losses = [rehearsal.learn(rows, guess * factor * annealed(at, STEPS)) for at, rows in enumerate(each)]
                trials[turn].append((guess * factor, losses[-KEPT:]))
    return {"limit": limit, "start": sum(begin) / KEPT, "trials": trials}


def combination(name: str) -> Combination:
    """The one that is called so."""
    model, rows, targets, *method, steps = name.split(" ")
    return Combination(model, rows, targets, " ".join(method), int(steps))


def main() -> None:
    """All searches of the known ones whose models are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="searches whose names hold this")
    parser.add_argument("--workers", type=int, default=1, help="on each device")
    parser.add_argument("--devices", default="", help="numbers of GPUs, with commas between")
    given = parser.parse_args()
    models = dict(text.split("=", 1) for text in given.models)
    known: dict[str, Found] = json.loads(given.known.read_text())["searches"]
    wanted = [combination(name) for name in known if given.only in name]
    context = multiprocessing.get_context("spawn")
    devices, numbers = context.Queue(), given.devices.split(",")
    for number in numbers * given.workers:
        devices.put(number)
    found: dict[str, Found] = {}
    with ProcessPoolExecutor(
        given.workers * len(numbers), context, initializer=start, initargs=(devices, True)
    ) as pool:
        jobs = {
            pool.submit(look, what, models, given.data, f"{given.work}/{what}".replace(" ", "_")): str(what)
            for what in wanted
            if what.model in models
        }
        for job in as_completed(jobs):
            found[jobs[job]] = {"grid": known[jobs[job]]["grid"], **job.result()}
            given.output.write_text(json.dumps({"searches": found}))
            print(jobs[job], flush=True)


if __name__ == "__main__":
    main()
