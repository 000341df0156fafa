"""The figures of `scripts/results.py` as one JSON file and as the tables of docs/results.md.

    python scripts/results_tables.py OUTPUT results.json > tables.md

OUTPUT is the folder of the runs. A set whose runs are not all there yet is in the JSON file, but in no table of seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import yaml

Run = dict[str, Any]
LOSS = ("math", "code", "instruction")
FULL = "full"


def main() -> None:
    """Read all sets, write the JSON file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sets = {folder.name: read_set(folder) for folder in sorted(given.output.iterdir()) if folder.is_dir()}
    given.json.write_text(json.dumps(sets, indent=1) + "\n")
    whole = {name: found for name, found in sets.items() if is_whole(found, given.seeds)}
    print(f"Complete: {', '.join(whole)}; begun: {', '.join(sorted(set(sets) - set(whole)))}\n")
    print(final_table({name: found["final"] for name, found in whole.items()}))
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


def is_whole(found: dict[str, Any], seeds: int) -> bool:
    """Whether every method of the search has all its seeds."""
    return bool(found["final"]) and all(
        method in found["final"] and len(found["final"][method]["runs"]) == seeds
        for method, losses in found["search"].items()
        if any(loss is not None for loss in losses.values())
    )


def final_table(sets: dict[str, dict[str, Any]]) -> str:
    """Mean and sample deviation over seeds; bold is the best, italics the second best of what trains an adapter."""
    columns = [(name, "loss") for name in LOSS if name in sets]
    columns += [("math", "exact_match")] if "math" in sets else []
    columns += [(name, "accuracy") for name in sets if name not in LOSS]
    methods = list(dict.fromkeys(method for final in sets.values() for method in final))
    values = {column: {m: figures(sets[column[0]], m, column[1]) for m in methods} for column in columns}
    places = {column: places_of(found, lowest=column[1] == "loss") for column, found in values.items()}
    lines = [f"| method | {' | '.join(f'{name}: {what}' for name, what in columns)} | mean place |"]
    lines += ["|---" * (len(columns) + 2) + "|"]
    for method in methods:
        mine = [places[column][method] for column in columns if method in places[column]]
        mean = f"{statistics.fmean(mine):.1f}" if mine else ""
        cells = [cell(values[column][method], places[column].get(method), column[1]) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def figures(final: dict[str, Any], method: str, what: str) -> list[float]:
    """One value a seed."""
    runs = final.get(method, {"runs": []})["runs"]
    if what == "loss":
        return [run["loss"]["final"] for run in runs]
    return [metrics[what] for run in runs for metrics in run.get("tasks", {}).values()]


def places_of(values: dict[str, list[float]], *, lowest: bool) -> dict[str, int]:
    """1 for the best mean, and so on, without full fine-tuning."""
    means = {method: statistics.fmean(found) for method, found in values.items() if found and method != FULL}
    order = sorted(means, key=lambda method: means[method] if lowest else -means[method])
    return {method: place for place, method in enumerate(order, 1)}


def cell(values: list[float], place: int | None, what: str) -> str:
    """Mean ± sample deviation, shares in per cent."""
    if not values:
        return ""
    factor, digits = (1.0, 4) if what == "loss" else (100.0, 2)
    mean = statistics.fmean(values) * factor
    spread = f" ± {statistics.stdev(values) * factor:.{digits}f}" if len(values) > 1 else ""
    mark = {1: "**", 2: "*"}.get(place or 0, "")
    return f"{mark}{mean:.{digits}f}{mark}{spread}"


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
