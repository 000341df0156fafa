"""How long methods take for one recipe, GoRA's gradients counted: the setting of the paper's Table 8, on one GPU.

    python scripts/benchmarks/methods.py --output methods.json

Each method makes a run of a number of steps on the model and rows of `distributed.py`, one after the other in this
process. From the median step of the second half and the seconds of the gradients follows the time of a run of `--whole`
steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from distributed import outcome, prepare
from distributed_table import versions
from llama import make_model, make_rows

from gora.recipe import load_recipe
from gora.stages.run import run


def main() -> None:
    """Measure each method, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("methods.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-benchmark"), help="room for 17 GB")
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model; 32 is Llama-3.1-8B")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--methods", nargs="+", default=["lora", "adalora", "gora"])
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a training step")
    parser.add_argument("--micro-batches", type=int, default=64, help="of the gradient pass")
    parser.add_argument("--whole", type=int, default=1562, help="steps of a whole run: 100k rows in batches of 64")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_model(arguments.work / "model", arguments.layers)
    make_rows(arguments.work / "rows.jsonl", arguments.tokens)
    arguments.within, given = 0, list(arguments.set)
    rows: list[dict[str, Any]] = []
    for method in arguments.methods:
        arguments.set = [*given, f"adapter.method={method}"]
        output, recipe, overrides = prepare(("ddp", "attention", ()), 1, arguments)
        try:
            run(load_recipe(str(recipe), overrides).recipe)
            rows.append({"method": method, **outcome(output)})
            rows[-1] |= whole_run(rows[-1], arguments)
        except Exception as error:  # the other methods are worth having all the same
            rows.append({"method": method, "error": f"{type(error).__name__}: {error}"})
        print(json.dumps(rows[-1]), flush=True)
        arguments.output.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1))
    print(table(rows))


def whole_run(row: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of 64 rows, and of a run, from the rates of the lines of metrics."""
    step = 64 * arguments.tokens / row["late_rate"]
    return {"step_seconds": step, "whole_seconds": row["gradient_seconds"] + arguments.whole * step}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; the last column compares with the first method."""
    lines = ["| method | gradients s | a step of 64 rows s | whole run h | of the first |", "|---|---|---|---|---|"]
    first = next((row["whole_seconds"] for row in rows if "error" not in row), None)
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['method']} | failed: {row['error'].splitlines()[-1]} |")
        else:
            lines.append(
                f"| {row['method']} | {row['gradient_seconds']:.1f} | {row['step_seconds']:.3f} | "
                f"{row['whole_seconds'] / 3600:.3f} | {row['whole_seconds'] / first:.4f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
