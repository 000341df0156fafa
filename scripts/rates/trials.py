"""What short trials see, on searches whose best rate is known: the raw data behind the rule of `gora.probing.trials`.

    python scripts/rates/trials.py --models smollm2=FOLDER base-28m=FOLDER minilm=FOLDER --data FOLDER --work FOLDER \
        --known docs/data/rate-trials.json docs/data/rate-judged.json --output trials.json
    python scripts/rates/choose.py trials.json

The searches, and their grids of whole runs, are those of `--known`. Each is opened as `judge.py` opens it, and in the
place of a search for a rate come range tests and trials of each of `SHAPES` at rates around what the range test says.
"""

from __future__ import annotations

import json
import math
import sys
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from combinations import Combination, combination, recipe_of
from workers import folders_of, parser_of, pool_of, write_recipe

SHAPES = ((12, 16), (48, 4))
"""Steps and rows of a step."""
RANGE_ROWS = (8, 4)
"""Of a step of a range test; trials are around what the first says."""
FACTORS = [2.0**power for power in range(-2, 3)]
Found = dict[str, Any]


class Seen(Exception):
    """Enough was seen: the run ends."""


def look(what: Combination, models: dict[str, str], data: Path, folder: str) -> Found:
    """Limits of range tests, the loss at the start, and all losses of each trial; or why there are none."""
    from gora.probing import rate as module
    from gora.recipe import load_recipe
    from gora.stages.run import run

    found: Found = {}

    def decide(context: Any, model: Any, lr_ratio: float, steps: int) -> None:
        found.update(_look(context, model, lr_ratio))
        raise Seen

    module.decide = decide
    path = write_recipe(recipe_of(what, models, data), folder, "auto")
    try:
        run(load_recipe(path).recipe, mode="overwrite")
    except Seen:
        return found
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {"failed": "the run went on"}


def _look(context: Any, model: Any, lr_ratio: float) -> Found:
    from gora.core.learning_rate import annealed, rate_below
    from gora.methods import METHODS
    from gora.probing.range_test import STEPS as TESTED
    from gora.probing.range_test import range_test
    from gora.probing.rehearsal import rehearsing, rows_to_rehearse

    def batches(count: int, size: int, turn: int) -> list[list[int]]:
        rows = rows_to_rehearse(context, count * size, turn=turn)
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    found: Found = {"limits": {}, "trials": {}}
    whole = METHODS[context.recipe.adapter.method].saved_as == "model"
    with rehearsing(context, model, lr_ratio) as rehearsal:
        for size in RANGE_ROWS:
            rehearsal.begin()
            tested = range_test(rehearsal, batches(TESTED, size, 1), whole_weights=whole)
            found["limits"][str(size)] = [tested.limit, len(tested.losses)]
        limit = found["limits"][str(RANGE_ROWS[0])][0]
        guess = rate_below(limit or 0.3)
        rehearsal.begin()
        for steps, size in SHAPES:
            drawn = batches(steps, size, 2)
            before = [rehearsal.loss(rows) for rows in drawn]
            found["trials"][f"{steps}x{size}"] = trials = [[0.0, before]]
            for factor in FACTORS:
                rehearsal.begin()
                losses: list[float] = []
                for at, rows in enumerate(drawn):
                    losses.append(rehearsal.learn(rows, guess * factor * annealed(at, steps)))
                    if not losses[-1] < 3 * before[at] + 1:
                        break
                trials.append([guess * factor, [round(each, 4) if math.isfinite(each) else None for each in losses]])
            rehearsal.begin()
    return found


def grids(files: list[Path]) -> dict[str, list[list[float]]]:
    """Rates and final losses of whole runs, by search."""
    found: dict[str, list[list[float]]] = {}
    for file in files:
        told = json.loads(file.read_text())
        for name, search in told.get("searches", told).items():
            runs = (
                search["grid"]
                if isinstance(search, dict)
                else [
                    [run["rate"], run["loss"]["final"]]
                    for run in search
                    if "loss" in run and math.isfinite(run["loss"]["final"] or math.inf)
                ]
            )
            found[name] = sorted(runs)
    return found


def main() -> None:
    """All searches of the known ones whose models are there."""
    parser = parser_of(__doc__)
    parser.add_argument("--known", type=Path, nargs="+", required=True)
    given = parser.parse_args()
    models = folders_of(given.models)
    known = grids(given.known)
    wanted = [combination(name) for name in known if given.only in name]
    # The slow ones first.
    wanted = sorted((each for each in wanted if each.model in models), key=lambda each: list(models).index(each.model))
    found: dict[str, Found] = {}
    with pool_of(given.workers, given.devices) as pool:
        jobs = {
            pool.submit(look, what, models, given.data, f"{given.work}/{what}".replace(" ", "_")): str(what)
            for what in wanted
        }
        for job in as_completed(jobs):
            name, result = jobs[job], job.result()
            found[name] = {"grid": known[name], **result}
            given.output.write_text(json.dumps({"searches": found}))
            print(name, result.get("failed", ""), flush=True)


if __name__ == "__main__":
    main()
