"""Fenced code in Markdown, as models write it: with or without a language, indented, never closed."""

import re
import textwrap

from gora.data.code_blocks import code_spans

_FENCE = re.compile(r"[ \t]*(?P<marks>`+|~+)[ \t]*(?P<language>[^\n]*)")
_PYTHON = ("", "py", "ipython")
_SESSION = (">>> ", "... ")


def fenced_blocks(text: str) -> list[str]:
    """The contents of all fenced blocks, those of other languages left out where some are Python or do not say.

    A block that is not closed runs to the end of the text. Prompts of an interactive session are taken away.
    """
    blocks: list[tuple[str, str]] = []
    for start, end in code_spans(text):
        first, *inside = text[start:end].splitlines()
        opening = _FENCE.match(first)
        if opening is None:
            continue
        if inside and _closes(inside[-1], opening["marks"]):
            inside.pop()
        blocks.append((opening["language"].strip(" {.}").lower(), _code(inside)))
    filled = [(language, code) for language, code in blocks if code.strip()]
    python = [code for language, code in filled if not language or language.startswith(_PYTHON[1:])]
    return python or [code for _, code in filled]


def _closes(line: str, marks: str) -> bool:
    line = line.strip()
    return len(line) >= len(marks) and set(line) == {marks[0]}


def _code(lines: list[str]) -> str:
    code = textwrap.dedent("\n".join(lines))
    if code.lstrip().startswith(_SESSION[0]):
        code = "\n".join(line[4:] for line in code.splitlines() if line.startswith(_SESSION))
    return code
