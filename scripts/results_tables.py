"""The figures of `scripts/results.py` as one JSON file and as the tables of docs/results.md.

    python scripts/results_tables.py OUTPUT results.json > tables.md

OUTPUT is the folder of the runs. A figure of fewer seeds than the others says so.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import yaml
from results import PAPER

Run = dict[str, Any]
LOSS = ("math", "code", "instruction")
FULL = "full"
# What the other settings are held against.
KNOWN = ("LoRA", "LoRA-GA", "GoRA")
# What docs/results.md sets side by side. A seed holds out rows of its own: differences of the same seed say more.
PAIRS = (
    ("LoRA-GA", "LoRA"),
    ("EVA", "LoRA"),
    ("GoRA", "LoRA"),
    ("GoRA", "rsLoRA with rates of LoRA+"),
    ("GoRA, ranks only", "rsLoRA with rates of LoRA+"),
    ("GoRA, initial values only", "rsLoRA with rates of LoRA+"),
    ("GoRA r32", "rsLoRA r32 with rates of LoRA+"),
    ("GoRA, B at a quarter", "rsLoRA, B at a quarter"),
    ("GoRA, B at a quarter", "LoRA"),
    ("GoRA, A of the gradient", "GoRA"),
    ("GoRA, A of the gradient, B at a quarter", "GoRA, B at a quarter"),
    ("GoRA, A of the gradient, B at a quarter", "LoRA"),
    ("GoRA, A of the gradient, B at a quarter", "LoRA-GA"),
)


def main() -> None:
    """Read all sets, write the JSON file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sets = {folder.name: read_set(folder) for folder in sorted(given.output.iterdir()) if folder.is_dir()}
    given.json.write_text(json.dumps(sets, indent=1) + "\n")
    final = {name: found["final"] for name, found in sets.items()}
    print(f"### Methods of the paper\n\n{final_table(final, list(PAPER), given.seeds)}")
    more = {name: found for name, found in final.items() if found.keys() - PAPER.keys()}
    others = dict.fromkeys(method for found in more.values() for method in found if method not in PAPER)
    print(f"\n### Beyond the paper\n\n{final_table(more, [*KNOWN, *others], given.seeds, places=False)}")
    print(f"\n### Differences of the same seeds\n\n{paired_table(final)}")
    for name, found in sets.items():
        print(f"\n### Search for learning rates, {name}\n\n{search_table(found['search'])}")


def read_set(folder: Path) -> dict[str, Any]:
    """Losses of the search by method and learning rate, and the runs at the chosen rates by method."""
    search: dict[str, dict[str, float | None]] = {}
    for label in labels(folder / "search.yaml"):
        method, _, rate = label.rpartition(" at ")
        runs = read_runs(folder / "search", label)
        search.setdefault(method, {})[rate] = runs[0]["loss"]["final"] if runs else None
    final = {}
    for label in labels(folder / "final.yaml"):
        method, _, rate = label.rpartition(" at ")
        final[method] = {"learning_rate": float(rate), "runs": read_runs(folder / "final", label)}
    return {"search": search, "final": final}


def labels(file: Path) -> list[str]:
    """The variants of a comparison, which may not have begun."""
    return list(yaml.safe_load(file.read_text())["variants"]) if file.exists() else []


def read_runs(folder: Path, label: str) -> list[Run]:
    """The finished runs of a variant, in the order of their seeds."""
    stem = re.sub(r"[^\w.+=-]+", "_", f"{label} seed=")
    found = []
    for path in sorted(folder.glob("runs/*/evaluation.json")):
        name, _, seed = path.parent.name.rpartition("=")
        if f"{name}=" == stem:
            result = json.loads(path.read_text())
            tasks = {task: sides["trained"]["metrics"] for task, sides in result.pop("tasks", {}).items()}
            found.append({"seed": int(seed), **result, **({"tasks": tasks} if tasks else {})})
    return found


def final_table(sets: dict[str, dict[str, Any]], methods: list[str], seeds: int, *, places: bool = True) -> str:
    """Mean and sample deviation over seeds.

    Args:
        sets: each set's runs by method.
        methods: the lines.
        seeds: how many there should be.
        places: mark the best in bold and the second best in italics among what trains an adapter, and end each line
            with the mean of its places.
    """
    columns = [(name, "loss") for name in LOSS if name in sets]
    columns += [("math", "exact_match")] if "math" in sets else []
    columns += [(name, "accuracy") for name in sets if name not in LOSS]
    values = {column: {m: figures(sets[column[0]], m, column[1]) for m in methods} for column in columns}
    order = {column: places_of(found, column[1] == "loss", seeds) if places else {} for column, found in values.items()}
    titles = ["method", *(f"{name}: {what}" for name, what in columns), *(["mean place"] if places else [])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method in methods:
        if not any(found[method] for found in values.values()):
            continue
        mine = [order[column][method] for column in columns if method in order[column]]
        cells = [cell(values[column][method], order[column].get(method), column[1], seeds) for column in columns]
        mean = [f"{statistics.fmean(mine):.1f}" if mine else ""] if places else []
        lines.append(f"| {' | '.join([method, *cells, *mean])} |")
    return "\n".join(lines)


def paired_table(sets: dict[str, dict[str, Any]]) -> str:
    """Mean and sample deviation over seeds of the difference of two methods' losses."""
    names = [name for name in LOSS if name in sets]
    lines = [f"| method | less | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for method, other in PAIRS:
        cells = []
        for name in names:
            mine, theirs = (
                {run["seed"]: run["loss"]["final"] for run in sets[name].get(each, {"runs": []})["runs"]}
                for each in (method, other)
            )
            found = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
            cells.append(f"{statistics.fmean(found):+.4f} ± {statistics.stdev(found):.4f}" if len(found) > 1 else "")
        lines.append(f"| {method} | {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(final: dict[str, Any], method: str, what: str) -> list[float]:
    """One value a seed."""
    runs = final.get(method, {"runs": []})["runs"]
    if what == "loss":
        return [run["loss"]["final"] for run in runs]
    return [metrics[what] for run in runs for metrics in run.get("tasks", {}).values()]


def places_of(values: dict[str, list[float]], lowest: bool, seeds: int) -> dict[str, int]:
    """1 for the best mean of what trains an adapter and has all seeds, and so on; equal means have the same place."""
    sign = 1 if lowest else -1
    means = {
        method: round(sign * statistics.fmean(found), 9) for method, found in values.items() if len(found) == seeds
    }
    means.pop(FULL, None)
    return {method: 1 + sum(other < mean for other in means.values()) for method, mean in means.items()}


def cell(values: list[float], place: int | None, what: str, seeds: int) -> str:
    """Mean ± sample deviation, shares in per cent; how many there are, if not all."""
    if not values:
        return ""
    factor, digits = (1.0, 4) if what == "loss" else (100.0, 2)
    mean = statistics.fmean(values) * factor
    spread = f" ± {statistics.stdev(values) * factor:.{digits}f}" if len(values) > 1 else ""
    mark = {1: "**", 2: "*"}.get(place or 0, "")
    fewer = f" ({len(values)} seed{'s' * (len(values) > 1)})" if len(values) < seeds else ""
    return f"{mark}{mean:.{digits}f}{mark}{spread}{fewer}"


def search_table(search: dict[str, dict[str, float | None]]) -> str:
    """One seed's loss of every method at every rate; bold is a method's best."""
    rates = sorted({rate for losses in search.values() for rate in losses}, key=float)
    lines = [f"| method | {' | '.join(rates)} |", "|---" * (len(rates) + 1) + "|"]
    for method, losses in search.items():
        known = [loss for loss in losses.values() if loss is not None]
        best = min(known) if known else None
        cells = ["" if rate not in losses else _loss(losses[rate], best) for rate in rates]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _loss(loss: float | None, best: float | None) -> str:
    if loss is None:
        return "none"
    return f"**{loss:.4f}**" if loss == best else f"{loss:.4f}"


if __name__ == "__main__":
    main()
