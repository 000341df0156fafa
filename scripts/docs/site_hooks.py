"""Hooks of mkdocs: the page of all messages, made from the code at every build, and links to files outside of docs."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_RAISED = ("InputError", "GoraError", "Interrupted", "Unusable", "Contradiction")
_SAID = ("warn", "warn_once")
_ROOMS = {
    "recipe": "Recipes",
    "data": "Rows",
    "models": "Models",
    "runs": "Run folders",
    "runtime": "Processes and engines",
    "gradients": "Gradients",
    "planning": "The plan",
    "training": "Training",
    "methods": "Methods",
    "adapters": "Adapters",
    "evaluation": "Evaluation",
    "sandbox": "Programs that a model wrote",
    "stages": "Commands",
    "cli": "Commands",
    "comparison": "Comparisons",
}
_OUTSIDE = re.compile(r"\]\((\.\./[^)]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the page of messages."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "messages.md", content=messages_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository that are no pages become their names; so do those to recorded figures."""
    markdown = re.sub(r"\[([^\]]+)\]\(((?:\.\./|data/)[^)#]+)\)", r"\1 (`\2`)", markdown)
    return markdown


def messages_page() -> str:
    """Every message that a user may meet, by where it comes from."""
    by_room: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "gora").rglob("*.py")):
        room = _ROOMS.get(path.relative_to(ROOT / "gora").parts[0], "Others")
        by_room[room].update(messages(path.read_text(encoding="utf-8")))
    parts = [
        "# All messages\n",
        "Errors and warnings as they stand in the code; what changes from case to case is written `…`. Each says what "
        "to do; [Questions by symptom](faq.md) has more on the usual ones.\n",
    ]
    for room in dict.fromkeys([*_ROOMS.values(), "Others"]):
        if by_room[room]:
            parts.append(f"## {room}\n")
            parts += [f"- {_escaped(message)}" for message in sorted(by_room[room])]
            parts.append("")
    return "\n".join(parts)


def messages(source: str) -> Iterator[str]:
    """The texts of errors and warnings in a module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _RAISED or name in _SAID:
            for argument in node.args[:2]:
                text = " ".join(_text(argument).split())
                if len(re.sub(r"[…\W]", "", text)) > 8:
                    yield text


def _text(node: ast.expr) -> str:
    """What a text says, its inserted values left open."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "…"
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)
