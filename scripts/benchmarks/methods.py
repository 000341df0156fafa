"""How long methods take for one recipe, GoRA's gradients counted: the setting of the paper's Table 8, on one GPU.

    python scripts/benchmarks/methods.py --output methods.json

Each method runs `gora run` for a number of steps on the model and rows of `distributed.py`. A step is timed without the
first ones; from its median and the seconds of the gradients follows the time of a run of `--whole` steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from distributed import make_model, make_rows, measure, versions


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
    parser.add_argument("--device", choices=["gpus", "processes"], default="gpus")
    parser.add_argument("--set", action="append", default=[], help="handed on to gora")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_model(arguments.work / "model", arguments.layers)
    make_rows(arguments.work / "rows.jsonl", arguments.tokens)
    given, rows = list(arguments.set), []
    for method in arguments.methods:
        arguments.set = [*given, f"adapter.method={method}"]
        rows.append({"method": method, **measure("ddp", 1, arguments)})
        if "error" not in rows[-1]:
            rows[-1] |= whole_run(rows[-1], arguments)
        print(json.dumps(rows[-1]), flush=True)
        arguments.output.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1))
    print(table(rows))


def whole_run(row: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of 64 rows, and of a run, from the rates of the lines of metrics."""
    rate = statistics.median(row["rates"][2:])
    step = 64 * arguments.tokens / rate
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
