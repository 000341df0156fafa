"""Writes the table of README.md that says what is supported, from code and sweeps.

Run `python scripts/docs/support_table.py` after a method, task, format, engine or runtime was added or a sweep run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from gora.adapters.runtimes import RUNTIMES
from gora.evaluation.registry import TASKS
from gora.methods import METHODS
from gora.models.quantization import TRAINABLE
from gora.recipe.data_schema import RowFormat
from gora.runtime.engine import NAMES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
SUPPORT, END = "<!-- support: written by scripts/docs/support_table.py -->", "<!-- end -->"


def main() -> None:
    """Replace the table."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_table(page: str) -> str:
    """The page, with the table of today between its markers."""
    before, _, rest = page.partition(SUPPORT)
    return f"{before}{SUPPORT}\n{support()}\n{END}{rest.partition(END)[2]}"


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
        "quantized bases": f"{_quoted(TRAINABLE)} ([models](docs/models.md))",
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


if __name__ == "__main__":
    main()
