"""Finds words of everyday life where the field has its own, in what users read: docs, help and messages.

    python scripts/docs/vocabulary.py

Prints each as `file:line: WORD: say BETTER`, and exits with 1 where there are any. Docstrings and
comments are not read.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BETTER = {
    r"\banew\b": "again, or start over",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(is|are) none of\b": "must be one of",
    r"\b(one|process|processes) a (GPU|host|row|step)\b": "per GPU, host, row, step",
    r"\bpassed by\b": "not called",
    r"\b(go|goes|went) on from\b": "resume from",
    r"\bwhole or not at all\b": "atomic",
    r"\bsaved sums\b": "checkpoint of the sums",
    r"\bshared out over\b": "sharded over",
}


def main() -> None:
    """Print what is found."""
    found = [*_in_docs(), *_in_messages()]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))


def faults(text: str) -> Iterator[tuple[int, str]]:
    """The line, from 0, of each word that should be another one, and what to say."""
    for number, line in enumerate(text.splitlines()):
        for pattern, better in BETTER.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield number, f"{match[0]!r}: say {better}"


def _in_docs() -> Iterator[str]:
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]:
        for number, fault in faults(path.read_text(encoding="utf-8")) if path.exists() else ():
            yield f"{path.relative_to(ROOT)}:{number + 1}: {fault}"


def _in_messages() -> Iterator[str]:
    for path in sorted((ROOT / "gora").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(text) for node in ast.walk(tree) if (text := _docstring(node)) is not None}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                for _, fault in faults(node.value):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {fault}"


def _docstring(node: ast.AST) -> ast.Constant | None:
    """The text of a module, class, function or, under an assignment, of what is assigned; schemas speak to users."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return None
    return node.value


if __name__ == "__main__":
    main()
