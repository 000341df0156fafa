"""What methods, tools and sets are called in tables, and the paper's own figures."""

from __future__ import annotations

from collections.abc import Sequence

from cells import AUTO, AUTO_LORA

NAMES = {
    "peft": "PEFT", "llama-factory": "LLaMA-Factory", "axolotl": "Axolotl", "unsloth": "Unsloth", "trl": "TRL",
    "full": "full fine-tuning", "lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "lora+": "LoRA+", "pissa": "PiSSA",
    "olora": "OLoRA", "adalora": "AdaLoRA", "lora-pro": "LoRA-Pro", "lora-ga": "LoRA-GA", "lora-one": "LoRA-One",
    "eva": "EVA", "gora paper": "GoRA as published", "gora auto": "GoRA as in `preset: auto`",
    "gora paper r32": "GoRA r32", "gora paper r128": "GoRA r128", AUTO: "**`preset: auto`**",
    AUTO_LORA: "`preset: auto` with LoRA",
}  # fmt: skip
TABLE_NAMES = {
    "tools": "settings of tools and the preset", "fair": "methods at their own rates", "paper": "one rate for all",
    "again": "made on another machine before", "answers": "questions of GSM8K",
}  # fmt: skip
TITLES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "qnli": "QNLI", "mnli": "MNLI", "rte": "RTE"}
PUBLISHED = {
    "full": (73.69, 51.63), "lora": (67.78, 43.09), "rslora": (68.36, 45.78), "dora": (69.17, 43.70),
    "lora+": (71.29, 44.51), "olora": (68.54, 43.29), "pissa": (68.56, 44.10), "lora-ga": (71.39, 43.29),
    "adalora": (70.63, 41.46), "gora paper": (72.91, 48.98), "gora paper r32": (75.59, 51.22),
    "gora paper r128": (75.74, 52.03),
}  # fmt: skip
"""GSM8K and HumanEval in the paper's Table 2 (Llama-3.1-8B)."""

ABLATED = {
    "gora paper": ("as published: 4 to 32, gamma 0.05, mean of abs(W * G)", 72.88, 48.98),
    "gora 8 to 8": ("ranks 8 to 8", 72.10, 44.75),
    "gora 6 to 15": ("ranks 6 to 15", 72.25, 45.85),
    "gora 0 and up": ("ranks from 0 on", 72.83, 46.13),
    "gora gamma 0.08": ("gamma 0.08", 72.91, 46.54),
    "gora gamma 0.03": ("gamma 0.03", 72.71, 45.93),
    "gora gamma 0": ("gamma 0", 72.45, 46.34),
    "gora nuclear W*G": ("nuclear norm of W * G", 72.65, 45.12),
    "gora nuclear G": ("nuclear norm of G", 72.70, 43.09),
}
"""What Tables 5 and 6 of the paper vary, and its GSM8K and HumanEval."""
TABLE_2 = tuple(PUBLISHED)
"""Methods of the paper's Table 2."""
RANK_8 = tuple(method for method in TABLE_2 if method not in ("full", "gora paper r32", "gora paper r128"))
NOT_YET = "Not run yet."


def title(rows: str) -> str:
    """What a set is called in tables."""
    return TITLES.get(rows, rows)


def named(names: Sequence[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def titles(sets: Sequence[str]) -> str:
    """Sets as in a sentence."""
    return named([title(rows) for rows in sets])


def plain(method: str) -> str:
    """A method as in a sentence."""
    return NAMES[method].replace("**", "")


def signed(share: float) -> str:
    """A share in per cent, with its sign; what rounds to nothing has a plus."""
    return f"{round(100 * share, 1) + 0.0:+.1f} %"


def points(parts: Sequence[str]) -> str:
    """A list in Markdown, without what is empty."""
    return "\n".join(f"- {part}" for part in parts if part) or NOT_YET


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; a sentence where it has no lines."""
    if not lines:
        return NOT_YET
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
