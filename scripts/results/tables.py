"""The figures of `scripts/results/run.py` as one JSON file and as the tables of docs/results.md.

    python scripts/results/tables.py results.json OUTPUT [OUTPUT ...] > tables.md

OUTPUT is the folder of the runs; several are taken together, with the figures of an earlier results.json if one is
given (`--known`). A figure of fewer seeds than the others says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalogue import CHANGED, PAPER, SETS
from run import Losses, least, losses_merged

Run = dict[str, Any]
Found = dict[str, Any]
LOSS = ("math", "code", "instruction")
# The columns in which methods differ by more than their seeds do.
TELLING = (*((name, "loss") for name in LOSS), ("glue-sst2", "accuracy"))
FULL = "full"
# What the other settings are held against.
KNOWN = ("LoRA", "LoRA-GA as in PEFT", "GoRA")
GRADIENT = "GoRA, A of the gradient"
# What docs/results.md sets side by side. A seed holds out rows of its own: differences of the same seed say more.
PAIRS = (
    ("LoRA-GA as in PEFT", "LoRA"),
    ("EVA", "LoRA"),
    ("rsLoRA", "LoRA"),
    ("GoRA", "LoRA"),
    ("GoRA", "rsLoRA with rates of LoRA+"),
    ("GoRA, ranks only", "rsLoRA with rates of LoRA+"),
    ("GoRA, initial values only", "rsLoRA with rates of LoRA+"),
    ("GoRA r32", "rsLoRA r32 with rates of LoRA+"),
    ("GoRA, one rate", "rsLoRA"),
    ("GoRA, one rate, equal ranks", "rsLoRA"),
    (f"{GRADIENT}, one rate", "GoRA, one rate"),
    (f"{GRADIENT}, one rate, equal ranks", "GoRA, one rate, equal ranks"),
    (f"{GRADIENT}, one rate, equal ranks", f"{GRADIENT}, one rate"),
    (f"{GRADIENT}, one rate, equal ranks", "LoRA"),
    (f"{GRADIENT}, one rate, equal ranks", "EVA"),
    (f"{GRADIENT}, one rate, equal ranks", "LoRA-GA as in PEFT"),
    (f"{GRADIENT}, one rate, equal ranks", "LoRA-GA as in PEFT, B at a quarter"),
)


def main() -> None:
    """Read all sets, write the JSON file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("outputs", type=Path, nargs="+")
    parser.add_argument("--known", type=Path, help="results.json of earlier runs")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    known = json.loads(given.known.read_text()) if given.known else {}
    folders = {name: name.replace("/", "-") for name in SETS}
    every = {
        folder: read_set([output / folder for output in given.outputs], known.get(folder, {}))
        for folder in sorted(folders.values())
    }
    sets = {folder: found for folder, found in every.items() if any(found.values())}
    given.json.write_text(json.dumps(sets, indent=1) + "\n")
    final = {name: found["final"] for name, found in sets.items()}
    print(f"### Methods of the paper\n\n{final_table(final, list(PAPER), given.seeds)}")
    more = {name: found for name, found in final.items() if found.keys() - PAPER.keys()}
    others = dict.fromkeys(method for found in more.values() for method in found if method not in PAPER)
    print(f"\n### Beyond the paper\n\n{final_table(more, [*KNOWN, *others], given.seeds, places=False)}")
    print(f"\n### Not at the best rate of the search\n\n{not_at_best(sets)}")
    print(f"\n### Differences of the same seeds\n\n{paired_table(sets)}")
    searched = {name: sets[name]["search"] for name in LOSS if name in sets}
    print(f"\n### One setting changed\n\n{changes_table(searched)}")
    for name, found in sets.items():
        unchanged = {method: losses for method, losses in found["search"].items() if method not in CHANGED}
        print(f"\n### Search for learning rates, {name}\n\n{search_table(unchanged)}")


def read_set(folders: list[Path], known: Found) -> Found:
    """Losses of the search by method and learning rate, and the runs at the chosen rates by method.

    Where a method has runs at more than one rate, those with the most seeds count, and among them the best rate.
    """
    search: Losses = known.get("search", {})
    runs: dict[str, dict[float, dict[int, Run]]] = {}
    for method, found in known.get("final", {}).items():
        runs.setdefault(method, {})[found["learning_rate"]] = {run["seed"]: run for run in found["runs"]}
    for folder in folders:
        searched = folder / "search.json"
        search = losses_merged(search, json.loads(searched.read_text()) if searched.exists() else {})
        for method, rate, run in [*read_runs(folder / "final"), *read_runs(folder / "changed")]:
            by_seed = runs.setdefault(method, {}).setdefault(rate, {})
            if "tasks" in run or "tasks" not in by_seed.get(run["seed"], {}):
                by_seed[run["seed"]] = run
    final = {}
    for method, by_rate in runs.items():
        if not any(by_rate.values()):
            continue
        rate = rate_that_counts({rate: len(by_seed) for rate, by_seed in by_rate.items()}, search.get(method, {}))
        final[method] = {"learning_rate": rate, "runs": [run for _, run in sorted(by_rate[rate].items())]}
    return {"search": search, "final": final}


def rate_that_counts(seeds: dict[float, int], losses: dict[str, float | None]) -> float:
    """The best of the rates with the most seeds."""
    most = max(seeds.values())
    known = {f"{rate:g}": losses.get(f"{rate:g}") for rate, count in seeds.items() if count == most}
    return least(known) or float(next(iter(known)))


def read_runs(folder: Path) -> Iterator[tuple[str, float, Run]]:
    """Method, learning rate and result of the finished runs of a comparison."""
    listed = folder / "runs.json"
    for trial in json.loads(listed.read_text()) if listed.exists() else []:
        path = folder / "runs" / trial["folder"] / "results.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        if "loss" not in result:
            continue
        tasks = {task: sides["trained"]["metrics"] for task, sides in result.pop("tasks", {}).items()}
        run = {"seed": trial["seed"], **result, **({"tasks": tasks} if tasks else {})}
        method, _, rate = trial["label"].rpartition(" at ")
        yield method, float(rate), run


def final_table(sets: dict[str, dict[str, Any]], methods: list[str], seeds: int, *, places: bool = True) -> str:
    """Mean and sample deviation over seeds.

    Args:
        sets: each set's runs by method.
        methods: the lines.
        seeds: how many there should be.
        places: mark the best in bold and the second best in italics among what trains an adapter, and end each line
            with the mean of its places, and that of its places in the columns that tell methods apart.
    """
    columns = [(name, "loss") for name in LOSS if name in sets]
    columns += [("math", "exact_match")] if "math" in sets else []
    columns += [(name, "accuracy") for name in sets if name not in LOSS]
    values = {column: {m: figures(sets[column[0]], m, column[1]) for m in methods} for column in columns}
    order = {column: places_of(found, column[1] == "loss", seeds) if places else {} for column, found in values.items()}
    titles = ["method", *(f"{name}: {what}" for name, what in columns), *(["mean place", "of four"] if places else [])]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method in methods:
        if not any(found[method] for found in values.values()):
            continue
        mine = {column: order[column][method] for column in columns if method in order[column]}
        cells = [cell(values[column][method], order[column].get(method), column[1], seeds) for column in columns]
        told = [place for column, place in mine.items() if column in TELLING]
        mean = [f"{statistics.fmean(each):.1f}" if each else "" for each in (mine.values(), told)] if places else []
        lines.append(f"| {' | '.join([method, *cells, *mean])} |")
    return "\n".join(lines)


def paired_table(sets: dict[str, Found]) -> str:
    """Mean and sample deviation over seeds of the difference of two methods' losses.

    A dagger says that one of the two was not run at the best rate of the search.
    """
    names = [name for name in LOSS if name in sets]
    lines = [f"| method | less | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for method, other in PAIRS:
        cells = []
        for name in names:
            mine, theirs = (
                {run["seed"]: run["loss"]["final"] for run in sets[name]["final"].get(each, {"runs": []})["runs"]}
                for each in (method, other)
            )
            found = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
            mark = "" if all(is_at_best(sets[name], each) for each in (method, other)) else " †"
            cells.append(
                f"{statistics.fmean(found):+.4f} ± {statistics.stdev(found):.4f}{mark}" if len(found) > 1 else ""
            )
        lines.append(f"| {method} | {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_at_best(found: Found, method: str) -> bool:
    """Whether the runs that count have the best rate of the search."""
    counted = found["final"].get(method)
    return counted is not None and counted["learning_rate"] == least(found["search"].get(method, {}))


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


def not_at_best(sets: dict[str, Found]) -> str:
    """Where the runs that count are at another rate than the best of the search."""
    lines = []
    for name, found in sets.items():
        for method, counted in found["final"].items():
            if not is_at_best(found, method):
                best = least(found["search"].get(method, {}))
                lines.append(f"- {name}, {method}: {counted['learning_rate']:g} instead of {best}")
    return "\n".join(lines)


def changes_table(sets: dict[str, Losses]) -> str:
    """One seed's best loss of each change, less that of the method that it changes, and the rates of both."""
    names = [name for name in sets if any(change in sets[name] for change in CHANGED)]
    lines = [f"| method | change | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for name, (method, _) in CHANGED.items():
        cells = [change_cell(sets[each].get(name, {}), sets[each].get(method, {})) for each in names]
        if any(cells):
            lines.append(f"| {method} | {name.removeprefix(method)[2:]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def change_cell(changed: dict[str, float | None], unchanged: dict[str, float | None]) -> str:
    """Difference of the best losses, and where they are."""
    mine, theirs = least(changed), least(unchanged)
    if mine is None or theirs is None:
        return ""
    found, other = changed[f"{mine:g}"], unchanged[f"{theirs:g}"]
    assert found is not None and other is not None
    return f"{found - other:+.4f} ({mine:g}, {theirs:g})"


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
