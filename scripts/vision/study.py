"""Methods on images: a small ViT learns half of CIFAR-10's classes, and is fine-tuned on the others and on digits.

    python scripts/vision/study.py CIFAR OUTPUT [--digits digits.csv.gz]

CIFAR is a folder with train.parquet and test.parquet (columns image and label), OUTPUT takes models, runs and
results.json. Digits are scikit-learn's, 8 x 8 pixels. Every method is tried at three rates on one seed, and at the next
one beyond as long as the best, by the loss on rows that are held out of training, is at an edge; the best is run on
other seeds. The preset `auto` finds its own rate in every run. Accuracies are of images that nobody has trained on.
Several runs share each GPU, the better with NVIDIA's MPS. Finished runs in results.json are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from vision_base import pretrain
from vision_runs import METHODS, Workers
from vision_search import LADDER, Results
from vision_sets import SETS, write_images


def main() -> None:
    """Pre-train, search rates, run seeds, print the table."""
    given = _arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    write_images(given)
    base = given.output / "base"
    if not (base / "model.safetensors").exists():
        pretrain(given, base)
    results = Results(given.output / "results.json")
    results.note("settings", {name: str(value) for name, value in vars(given).items()})
    results.note("base", json.loads((base / "pretraining.json").read_text()))
    with Workers(given) as workers:
        workers.run([(kind, method) for method in given.methods for kind in SETS], results)
    print(table(results, given))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--digits", type=Path, help="scikit-learn's digits.csv.gz; its own without")
    parser.add_argument("--images", type=int, default=2500, help="of the new classes, to fine-tune on")
    parser.add_argument("--tests", type=int, default=5000, help="of the new classes, to test on")
    parser.add_argument("--pretraining", type=int, default=40, help="epochs on the first classes")
    parser.add_argument("--pretraining-images", type=int, default=25000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--rates", type=float, nargs="+", choices=LADDER, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--around", type=float, nargs="+", default=[], help="rates at which the preset is run as well")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--each", type=int, default=6, help="runs at a time on each GPU")
    parser.add_argument("--set", dest="more", action="append", default=[], help="for all runs, as gora takes it")
    return parser.parse_args()


def table(results: Results, given: argparse.Namespace) -> str:
    """Mean accuracy with its standard error, and the rate, by method and set."""
    lines = ["| method | trained | " + " | ".join(f"{title} | rate" for title in SETS.values()) + " |"]
    lines.append("|---" * (2 + 2 * len(SETS)) + "|")
    for method in given.methods:
        cells, trainable = [], 0
        for kind in SETS:
            rate = results.best(kind, method)
            runs = [
                run
                for run in results.runs
                if (run["set"], run["method"], run["rate"]) == (kind, method, rate)
                and run["seed"]
                and "accuracy" in run
            ]
            values = [100 * run["accuracy"] for run in runs]
            trainable = max([trainable, *(run["trainable"] for run in runs)])
            if not values:
                cells += ["-", "-"]
                continue
            alone = len(values) == 1
            error = ", one seed" if alone else f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"
            rates = sorted({round(run["rate_found"], 5) for run in runs})
            cells += [
                f"{statistics.mean(values):.2f}{error}",
                " to ".join(f"{each:g}" for each in rates[:: max(1, len(rates) - 1)]),
            ]
        lines.append(f"| {method} | {trainable:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
