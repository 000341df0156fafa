"""Trains a small model of every family of transformers, and writes what works into docs/models.md.

    python scripts/families/sweep.py RESULTS.json [--kind causal] [--family NAME] [--minutes 10] [--seconds 120]
    python scripts/families/sweep.py RESULTS.json --table

Each family has a process of its own and a time limit. What `RESULTS.json` holds already is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

# Everything is imported here, so that a process that forks off has it at once.
from gora.errors import InputError
from gora.models.load import load_model
from gora.recipe.load import load_recipe
from gora.runs.context import RunContext
from gora.runs.loss import evaluate_loss
from gora.stages.merge import merge
from gora.stages.run import run
from scripts.families.small import KINDS, build

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: written by scripts/families/sweep.py -->", "<!-- families: end -->"
TARGETS, METHODS = ("attention", "all-linear"), ("gora", "lora")
_TOLERANCE = 1e-4


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--family", action="append")
    parser.add_argument("--minutes", type=float, default=600, help="begin no family after this long")
    parser.add_argument("--seconds", type=float, default=120, help="for each family")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    if given.table:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
        return
    end = time.monotonic() + 60 * given.minutes
    for kind, (families, _) in KINDS.items():
        if given.kind not in (None, kind):
            continue
        for family in given.family or families:
            if family in families and f"{kind}/{family}" not in results and time.monotonic() < end:
                results[f"{kind}/{family}"] = found = alone(kind, family, given.seconds)
                given.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(f"{kind}/{family}: {json.dumps(found)}", flush=True)


def alone(kind: str, family: str, seconds: float) -> dict[str, str]:
    """Try a family in a process of its own."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_send, args=(theirs, kind, family))
    child.start()
    theirs.close()
    try:
        late = {"all": f"fault: still running after {seconds} s"}
        found: dict[str, str] = ours.recv() if ours.poll(seconds) else late
    except EOFError:
        found = {"all": "fault: the process died"}
    child.kill()
    child.join()
    return found


def _send(pipe: Any, kind: str, family: str) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    with TemporaryDirectory() as folder:
        pipe.send(attempt(kind, family, Path(folder)))


def attempt(kind: str, family: str, folder: Path) -> dict[str, str]:
    """What becomes of a family under each pair of targets and method: `works`, `refused: ...` or `fault: ...`.

    One that transformers cannot build so small is `not built: ...`.
    """
    model = folder / "model"
    try:
        build(kind, family, model)
    except Exception as error:  # a configuration can be wrong in any way
        return {"all": f"not built: {_line(error)}"}
    return {
        f"{targets}/{method}": _outcome(kind, model, folder / f"{targets}-{method}", targets, method)
        for targets in TARGETS
        for method in METHODS
    }


def _outcome(kind: str, model: Path, output: Path, targets: str, method: str) -> str:
    try:
        return _train_and_merge(kind, model, output, targets, method)
    except InputError as error:
        late = (output / "adapter").exists() or (output / "plan.safetensors").exists()
        return f"{'fault: refused late' if late else 'refused'}: {_line(error)}"
    except Exception as error:  # all others are what the sweep looks for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"fault: {type(error).__name__}: {_line(error)} ({Path(frame.filename).name}:{frame.lineno})"


def _train_and_merge(kind: str, model: Path, output: Path, targets: str, method: str) -> str:
    rows = {"path": str(model / "rows.jsonl")}
    document: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {"train": rows, "holdout": 4, "max_length": 64},
        "adapter": {"targets": targets, "method": method, "rank": 2, "alpha": 4},
        "gora": {"steps": 2},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "log_steps": 1},
        "output": str(output),
    }
    if kind == "encoder":
        document["model"]["head"] = "classification"
        document["data"]["choices"] = ["bad", "good"]
    path = output.with_suffix(".json")
    path.write_text(json.dumps(document), encoding="utf-8")
    recipe = load_recipe(str(path)).recipe
    trained = run(recipe)
    context = RunContext.alone(recipe)
    base = load_model(recipe.model, context.source, context.device, seed=recipe.seed)
    base.config.pad_token_id = 0
    loss = evaluate_loss(PeftModel.from_pretrained(base, str(trained.adapter)).eval(), context)
    if abs(loss - trained.losses["final"]) > _TOLERANCE * abs(loss):
        return f"fault: PEFT reloads it to a loss of {loss:.6f} instead of {trained.losses['final']:.6f}"
    try:
        merge(trained.adapter, output / "merged")
    except InputError as error:
        # As `gora run --merge` says before it trains.
        return f"refused: merging alone: {_line(error)}"
    return "works"


def _line(error: Exception) -> str:
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return re.sub(r"/tmp/\S*/", "", " ".join(lines[:2]))[:200]


def with_table(page: str, results: dict[str, dict[str, str]]) -> str:
    """The page, with the table of these results between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def table(results: dict[str, dict[str, str]]) -> str:
    """Counts for each kind, then every family that is not all `works`."""
    lines = ["| kind | families tried | all work | partly or wholly refused | faults |", "|---|---|---|---|---|"]
    for kind in KINDS:
        verdicts = Counter(_verdict(found) for name, found in results.items() if name.startswith(f"{kind}/"))
        tried = sum(count for verdict, count in verdicts.items() if verdict != "not built")
        counts = (verdicts["works"], verdicts["refused"], verdicts["fault"])
        lines.append(f"| {kind} | {tried} | {' | '.join(map(str, counts))} |")
    lines += ["", "| family | targets | outcome |", "|---|---|---|"]
    for name, found in sorted(results.items()):
        by_outcome: dict[str, list[str]] = {}
        for pair, outcome in found.items():
            by_outcome.setdefault(outcome, []).append(pair)
        lines += [
            f"| `{name}` | {', '.join(pairs)} | {_cell(outcome)} |"
            for outcome, pairs in by_outcome.items()
            if not outcome.startswith(("works", "not built"))
        ]
    working = sorted(name.partition("/")[2] for name, found in results.items() if _verdict(found) == "works")
    return "\n".join([*lines, "", f"All four combinations work: {', '.join(dict.fromkeys(working))}."])


def _verdict(found: dict[str, str]) -> str:
    beginnings = {outcome.partition(":")[0] for outcome in found.values()}
    return next((verdict for verdict in ("fault", "not built", "refused") if verdict in beginnings), "works")


def _cell(outcome: str) -> str:
    return outcome.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
