"""Writes the table of methods in docs/methods.md from what the methods say of themselves.

Run `python scripts/docs/methods_table.py` after a method was added or changed.
"""

from __future__ import annotations

from pathlib import Path

from gora.methods import METHODS, Method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- methods: written by scripts/docs/methods_table.py -->", "<!-- methods: end -->"
COLUMNS = ("method", "paper", "what it does", "rate of B", "`adapter.dora`", "`adapter.experts`", "engines", "saved as")


def main() -> None:
    """Replace the table."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_table(page: str) -> str:
    """The page, with the table of today between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """A line for each method, in the order of the recipe's schema."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(method) for method in METHODS.values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _row(method: Method) -> tuple[str, ...]:
    paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
    return (
        f"`{method.name}`",
        paper,
        f"{method.title}: {method.summary}",
        f"x {method.lr_ratio:g}" if "B" in method.parts else "",
        "yes" if method.supports_dora else "",
        "yes" if method.supports_experts else "",
        "`ddp`" if method.whole_gradients else "all",
        _saved_as(method),
    )


def _saved_as(method: Method) -> str:
    if method.saved_as == "model":
        return "`<output>/model`"
    if not method.plain_lora:
        return f"{method.title} adapter"
    return "plain LoRA, twice the rank" if method.moves_weights else "plain LoRA"


if __name__ == "__main__":
    main()
