"""The table of `distributed.py`, of one or several of its files.

python scripts/benchmarks/distributed_table.py one.json four.json --output all.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any


def versions() -> dict[str, str]:
    """Versions of what does the work."""
    from importlib.metadata import PackageNotFoundError, version

    known = {}
    for name in ("torch", "transformers", "accelerate", "deepspeed", "peft"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "absent"
    return known


def memory_text(peak: dict[str, int]) -> str:
    """Peak bytes of host and GPU in words."""
    return ", ".join(f"{where} {size / 1e9:.2f} GB" for where, size in peak.items())


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; speed-ups are over the mean of the runs of one process with the same targets."""
    titles = ["targets", "engine", "GPUs", "precompute: micro-batches", "s", "tokens/s per GPU", "speed-up"]
    titles += ["training: tokens/s per GPU", "speed-up", "all steps", "peak memory: precompute; training"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        head = f"| {row['targets']} | {row['engine_asked']} | {row['gpus']} |"
        if "error" in row:
            lines.append(f"{head} failed: {row['error'].splitlines()[-1]} |")
            continue
        gpus = row["gpus"]
        alone = [each for each in rows if each["targets"] == row["targets"] and each["gpus"] == 1]
        lines.append(
            f"{head} {row['micro_batches']} | {row['gradient_seconds']:.1f} | {row['gradient_rate'] / gpus:,.0f} | "
            f"{_speed_up(whole_rate, row, alone)} | {row['late_rate'] / gpus:,.0f} | "
            f"{_speed_up(late_rate, row, alone)} | {row['train_rate'] / gpus:,.0f} | "
            f"{'; '.join(map(memory_text, row['memory']))} |"
        )
    return "\n".join(lines)


def whole_rate(row: dict[str, Any]) -> float:
    """Micro-batches per second of the gradient pass, with the sum over processes at its end."""
    return float(row["micro_batches"] / row["gradient_seconds"]) if row["gradient_seconds"] else 0.0


def late_rate(row: dict[str, Any]) -> float:
    """Tokens per second of training, once everything is loaded and recorded."""
    return float(row["late_rate"])


def speed_up(rate: Callable[[dict[str, Any]], float], row: dict[str, Any], alone: list[dict[str, Any]]) -> float | None:
    """How many times as fast as the mean of runs of one process; None where there are none."""
    rates = [rate(each) for each in alone if "error" not in each]
    return rate(row) / mean(rates) if rates and all(rates) else None


def _speed_up(rate: Callable[[dict[str, Any]], float], row: dict[str, Any], alone: list[dict[str, Any]]) -> str:
    found = speed_up(rate, row, alone)
    return "" if found is None else f"{found:.2f}"


def main() -> None:
    """Put files together, and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="", help="what the file says of where it was measured")
    given = parser.parse_args()
    documents = [json.loads(file.read_text()) for file in given.files if file.exists()]
    rows = [row for document in documents for row in document["rows"]]
    if given.output:
        whole = {"device": given.device, "versions": documents[0]["versions"] if documents else {}, "rows": rows}
        given.output.write_text(json.dumps(whole, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
