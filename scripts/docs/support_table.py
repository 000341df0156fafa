"""Writes the tables of README.md: what is supported, from code and sweeps; what to expect, from results.

Run `python scripts/docs/support_table.py` after a method, task, format, engine or runtime was added or a sweep run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from gora.adapters.runtimes import RUNTIMES
from gora.evaluation.registry import TASKS
from gora.methods import METHODS
from gora.models.quantization import TRAINABLE
from gora.recipe.data_schema import RowFormat
from gora.runtime.engine import NAMES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
SUPPORT, EXPECT, END = (
    "<!-- support: written by scripts/docs/support_table.py -->",
    "<!-- expect: written by scripts/docs/support_table.py -->",
    "<!-- end -->",
)
ROWS = {
    "LoRA": "LoRA",
    "LoRA-GA as in PEFT": "LoRA-GA (PEFT)",
    "EVA": "EVA",
    "GoRA": "GoRA as published",
    "GoRA, A of the gradient, one rate, equal ranks": "GoRA, A along the gradient, one rate, equal ranks",
}
"""Labels of docs/data/results.json, and what the README calls them."""
SETS = ("math", "code", "instruction")


def main() -> None:
    """Replace both tables."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page, with the tables of today between their markers."""
    for begin, table in ((SUPPORT, support()), (EXPECT, expect())):
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{END}{rest.partition(END)[2]}"
    return page


def support() -> str:
    """What gora works with."""
    families = json.loads((ROOT / "scripts" / "families" / "results.json").read_text(encoding="utf-8"))["families"]
    tried = Counter(name.partition("/")[0] for name in families)
    works = Counter(name.partition("/")[0] for name, found in families.items() if "works" in found.values())
    counts = ", ".join(f"{count} of {tried[kind]} {kind}" for kind, count in works.items())
    lines = {
        "models": f"{counts} families of transformers work: trained and merged in a sweep ([list](docs/models.md))",
        "rows": f"{_quoted(get_args(RowFormat))}, from JSONL, JSON, CSV, TSV, Parquet, folders and the hub "
        "([data](docs/data.md))",
        "methods": f"{_quoted(METHODS)} ([methods](docs/methods.md))",
        "bases in few bits": f"{_quoted(TRAINABLE)} ([models](docs/models.md))",
        "engines": f"{_quoted(NAMES)}, or a file of Accelerate or DeepSpeed ([distributed](docs/distributed.md))",
        "tasks": f"{_quoted(_grouped(TASKS))} ([evaluation](docs/evaluation.md))",
        "runtimes": f"{_quoted(RUNTIMES)} ([serving](docs/serving.md))",
    }
    rows = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines.items())]
    return "\n".join(rows)


def _quoted(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _grouped(tasks: Mapping[str, Any]) -> list[str]:
    """Tasks of one set under one name."""
    return list(dict.fromkeys(f"{name.partition('/')[0]}/..." if "/" in name else name for name in tasks))


def expect() -> str:
    """Mean eval loss of the seeds at each method's own best rate."""
    results = json.loads((ROOT / "docs" / "data" / "results.json").read_text(encoding="utf-8"))
    lines = [f"| rank 8, each at its own rate | {' | '.join(SETS)} |", "|---" * (1 + len(SETS)) + "|"]
    for label, name in ROWS.items():
        means = [fmean(run["loss"]["final"] for run in results[each]["final"][label]["runs"]) for each in SETS]
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
