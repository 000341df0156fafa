"""Where an answer has fenced code blocks, by the rules of CommonMark 0.31 (section 4.5).

A block reaches from its opening fence to its closing one, both included: a model that is trained on blocks alone must
still learn to open and to close them. A fence that is never closed reaches to the end, as it does there. Wider than
CommonMark in one point: a fence may be indented by any amount, since lists put their blocks at any depth.
"""

import re

Span = tuple[int, int]

# A block may open right behind the mark of a list item, as in `1. ```python`.
_LINE = re.compile(r"(?P<space>[ \t]*)(?P<mark>(?:[-*+]|\d{1,9}[.)])[ \t]+)?(?P<fence>`{3,}|~{3,})(?P<info>[^\r\n]*)")


def code_spans(text: str) -> tuple[Span, ...]:
    """Start and end of every fenced code block, in characters: from the start of the opening fence's line, or from
    behind a list item's mark, to the end of the closing fence.

    Args:
        text: one answer in Markdown.
    """
    spans: list[Span] = []
    start, fence, position = 0, "", 0
    # Not `splitlines`, which also breaks at characters that are ordinary text in Markdown.
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        found = _LINE.match(line)
        if found and not fence and _opens(found):
            start, fence = position + (found.end("mark") if found["mark"] else 0), found["fence"]
        elif found and fence and _closes(found, fence):
            spans.append((start, position + found.end("fence")))
            fence = ""
        position += len(line)
    if fence:
        spans.append((start, len(text)))
    return tuple(spans)


def _opens(found: re.Match[str]) -> bool:
    """A line such as "```x```" is code within a sentence: no backtick may follow a fence of backticks."""
    return found["fence"][0] == "~" or "`" not in found["info"]


def _closes(found: re.Match[str], fence: str) -> bool:
    """A closing fence is of the same kind, at least as long, and alone on its line."""
    return found["mark"] is None and found["fence"].startswith(fence) and not found["info"].strip()
