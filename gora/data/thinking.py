"""The blocks in which models think before they answer."""

import re

_TAG = r"(?:think|thinking|thought|reasoning)"
_OPENING = rf"<{_TAG}>|\[THINK\]|<\|START_THINKING\|>"
_CLOSING = rf"</{_TAG}>|\[/THINK\]|<\|END_THINKING\|>"
_MARKS = re.compile(rf"({_OPENING}|{_CLOSING})")
_EMPTY = re.compile(rf"\s*(?:{_OPENING})\s*(?:{_CLOSING})\s*")
_CLOSED_AT_ONCE = re.compile(rf"\s*(?:{_CLOSING})\s*")
_LEFT_OPEN = re.compile(rf"(?:{_OPENING})\s*\Z")


def split_thinking(content: str) -> list[tuple[str, bool]]:
    """The texts between the marks of thinking blocks, and whether each of them is thinking.

    A text in front of a closing mark is thinking, since prompts may hold the opening one already.
    """
    pieces = _MARKS.split(content)
    texts, marks = pieces[::2], [*pieces[1::2], ""]
    return [(text, re.fullmatch(_CLOSING, mark) is not None) for text, mark in zip(texts, marks, strict=True)]


def empty_block(before: str, turn: str, content: str) -> int:
    """How many characters at the start of a turn are a thinking block without a text, which a template put there.

    Args:
        before: what stands before the turn, which may end in an opening mark.
        turn: what the template wrote.
        content: what the assistant says; a block that it has itself is its own.
    """
    if _EMPTY.match(content):
        return 0
    found = _EMPTY.match(turn) or (_CLOSED_AT_ONCE.match(turn) if _LEFT_OPEN.search(before) else None)
    return found.end() if found else 0
