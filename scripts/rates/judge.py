"""`train.learning_rate: auto` against a grid, on combinations that had no part in how it was chosen.

    python scripts/rates/judge.py --models smollm2=FOLDER base-28m=FOLDER minilm=FOLDER --data FOLDER --work FOLDER \
        --output judged.json

DATA has the sets of `SETS`. Each combination of model, set, targets and method is run with the rate that gora finds,
and then at that rate times each of `FACTORS`. Runs are made by gora's own stages, several at a time on each GPU, each
worker process one after another. Finished runs are kept in OUTPUT, and are not repeated.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from combinations import Combination, recipe_of
from workers import folders_of, parser_of, pool_of, write_recipe

FACTORS = (0.5, 2.0, 0.25, 4.0)
"""In this order: the nearest ones of all combinations come first."""
OTHER_SEED = 7
"""Of language models: other rows in the range test and in the trials than those that the rule was chosen by."""
FIVE_LINES = [Combination("smollm2", "math", "auto", method, 440) for method in ("gora", "lora")]
"""A recipe of a model and rows, and the same for LoRA: 440 steps of 16 rows are one epoch."""


def combinations() -> list[Combination]:
    """Those that are judged."""
    texts = [
        *(("smollm2", "math", "attention", method) for method in ("full", "lora-fa")),
        *(("smollm2", "math", "all-linear", method) for method in ("olora", "lora-pro")),
        *(("smollm2", "code", "attention", method) for method in ("olora", "full")),
        *(("smollm2", "code", "all-linear", method) for method in ("pissa", "lora-fa")),
        *(("smollm2", "instruction", "attention", method) for method in ("lora-ga", "eva")),
        *(("smollm2", "instruction", "all-linear", method) for method in ("pissa", "full")),
        *(("base-28m", "math", "attention", method) for method in ("gora", "dora")),
        ("base-28m", "math", "all-linear", "rslora"),
        *(("base-28m", "code", "attention", method) for method in ("lora-one", "gora paper")),
        *(("base-28m", "instruction", "all-linear", method) for method in ("lora+", "gora paper")),
    ]
    words = [
        ("smollm2", "boolq", "attention", "gora"),
        ("smollm2", "openbookqa", "all-linear", "lora"),
        ("smollm2", "openbookqa", "attention", "gora"),
        ("smollm2", "qnli", "all-linear", "gora"),
    ]
    labels = [("mrpc", "all-linear", "lora"), ("mnli", "attention", "gora"), ("qnli", "all-linear", "lora+")]
    return [
        *(Combination(*each, seed=OTHER_SEED) for each in (*texts, *words)),
        *(Combination("minilm", *each, 600) for each in labels),
    ]


def run_one(recipe: dict[str, Any], folder: str, rate: float | str) -> dict[str, Any]:
    """One run; what came of it."""
    from gora.recipe import load_recipe
    from gora.runs.folder import RunFolder
    from gora.stages.run import run

    path, begin = write_recipe(recipe, folder, rate), time.monotonic()
    try:
        trained = run(load_recipe(path).recipe, mode="overwrite")
    except Exception as error:  # a rate at which training falls apart, for one
        return {"rate": rate, "failed": f"{type(error).__name__}: {error}"[:300], "seconds": time.monotonic() - begin}
    found: dict[str, Any] = {"rate": rate, "loss": trained.losses, "seconds": time.monotonic() - begin}
    if rate == "auto":
        decision = json.loads(RunFolder(Path(folder)).decisions.read_text())["train.learning_rate"]
        found |= {"rate": decision["value"], "auto": True, "why": decision["why"], "curve": decision["curve"]}
    for weights in [*Path(folder).glob("**/*.safetensors"), *Path(folder).glob("**/*.pt")]:
        weights.unlink()
    return found


def main() -> None:
    """All combinations."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, help="instead of those of each combination")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    parser.add_argument("--five-lines", action="store_true", help="a recipe of a model and rows instead")
    parser.add_argument("--loud", action="store_true", help="print what the runs print")
    given = parser.parse_args()
    models = folders_of(given.models)
    wanted = [each for each in (FIVE_LINES if given.five_lines else combinations()) if given.only in str(each)]
    wanted = [each._replace(steps=given.steps or each.steps) for each in wanted if each.model in models]
    wanted = [each._replace(seed=seed) for each in wanted for seed in each.seeds]
    found: dict[str, list[dict[str, Any]]] = json.loads(given.output.read_text()) if given.output.exists() else {}
    end = time.monotonic() + 60 * given.minutes

    waiting: dict[Future[dict[str, Any]], Combination] = {}
    ready: list[tuple[int, int, Combination, float | str]] = []
    with pool_of(given.workers, given.devices, muted=not given.loud) as pool:
        at_once = given.workers * len(given.devices.split(","))

        def add(what: Combination, rate: float | str, turn: int) -> None:
            if rate not in [run["rate"] for run in found.get(str(what), [])]:
                heappush(ready, (turn, len(ready) - 1000 * what.steps, what, rate))

        def add_grid(what: Combination, rate: float) -> None:
            if what.seed != what.seeds[0]:
                return
            for turn, factor in enumerate((1.0, *FACTORS)):
                for seed in what.seeds if factor != 1.0 else what.seeds[1:]:
                    add(what._replace(seed=seed), float(f"{rate * factor:.3g}"), turn)

        def fill() -> None:
            while ready and len(waiting) < at_once and time.monotonic() < end:
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
