"""What a chat template wrote is compared with what it was given: nothing is cut, changed or left out unnoticed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gora.data.conversation import INSTRUCTING, Message
from gora.data.rendering import ChatTemplate
from gora.data.rows import Unusable
from gora.data.thinking import split_thinking
from gora.data.tool_calls import holds_call, json_forms, missing_tool

# Code points that Unicode keeps for use inside programs: marks around a text, and the digits of its number.
_OPEN, _NUMBERED, _CLOSE, _ZERO = "\ufdd0", "\ufdd1", "\ufdd2", 0xFDE0
_MARK = re.compile(f"{_OPEN}([\ufde0-\ufdef]+){_NUMBERED}|{_CLOSE}")

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text of a message that has to be in what the template writes.

    Attributes:
        index: the index of its message.
        text: the text, stripped.
        what: what messages call it: `message 2`, `the reasoning of message 2`.
        optional: whether a template may leave it out.
        of_content: whether it belongs to the content.
        anywhere: whether it may stand behind later messages, as templates do with a system message.
    """

    index: int
    text: str
    what: str
    optional: bool
    of_content: bool
    anywhere: bool


def check_written(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    whole: str,
    *,
    reasoning_from: int = 0,
    prompt: bool = False,
) -> dict[int, Span]:
    """Compare what the template wrote with what it was given.

    Args:
        template: the template.
        messages: the conversation.
        tools: its tools.
        whole: what `render` made of them.
        reasoning_from: the first message whose reasoning must have been written.
        prompt: as `whole` was rendered.

    Returns:
        From the index of a message to where its content stands in `whole`, for those that have any.

    Raises:
        Unusable: a text, a tool or a tool call is missing or changed.
    """
    pieces = [
        piece
        for index, message in enumerate(messages)
        for piece in _pieces(index, message, optional_reasoning=index < reasoning_from)
    ]
    spans = _marked_spans(template, messages, tools, whole, prompt)
    if spans is None:
        spans = _searched_spans(pieces, whole)
    for number, piece in enumerate(pieces):
        if number in spans:
            found = whole[slice(*spans[number])].strip()
            if found != piece.text and found not in json_forms(piece.text):
                raise Unusable(f"the {template.title} changes {piece.what}")
        elif not piece.optional:
            raise Unusable(f"the {template.title} leaves out {piece.what}{_advice(piece, messages)}")
    _check_tools(template, messages, tools, whole, prompt)
    _check_calls(template, messages, pieces, spans, whole)
    return _contents(pieces, spans)


def _marked_spans(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict[str, Any]], whole: str, prompt: bool
) -> dict[int, Span] | None:
    """Where each piece stands, told by marks that are put around it; None where marks change the rendering.

    A search alone would find a short text in another one: a system message "a" that was left out, for one.
    """
    if _MARK.search(whole):
        return None
    numbers = iter(range(2**31))
    try:
        text = template.render([_marked(message, numbers) for message in messages], tools, prompt=prompt)
    except Unusable:
        return None
    plain, spans = _without_marks(text)
    return spans if plain == whole else None


def _check_tools(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict[str, Any]], whole: str, prompt: bool
) -> None:
    if not tools:
        return
    if template.render(messages, prompt=prompt) == whole:
        raise Unusable(f"the {template.title} leaves out the tools")
    missing = missing_tool(whole, list(tools))
    if missing is not None:
        raise Unusable(
            f"the {template.title} leaves out the name, the description or a parameter of the tool {missing!r}"
        )


def _check_calls(
    template: ChatTemplate, messages: Sequence[Message], pieces: Sequence[_Piece], spans: dict[int, Span], whole: str
) -> None:
    """A call has to stand between the texts of its neighbours; a system message may stand anywhere."""
    for index, message in enumerate(messages):
        start, end = 0, len(whole)
        for number, span in spans.items() if message.tool_calls else ():
            other = pieces[number].index
            if messages[other].role in INSTRUCTING:
                continue
            start = max(start, span[1]) if other < index else start
            end = min(end, span[0]) if other > index else end
        for place, call in enumerate(message.tool_calls, start=1):
            missing = holds_call(whole[start:end], call)
            if missing is not None:
                raise Unusable(f"the {template.title} leaves out {missing} of tool call {place} of {message.name}")


def _advice(piece: _Piece, messages: Sequence[Message]) -> str:
    if "reasoning" in piece.what and any(each.role == "assistant" for each in messages[piece.index + 1 :]):
        return " because others follow (`data.turns: separate` trains every turn as the last one)"
    return " (`data.chat_template` names another one)"


def _pieces(index: int, message: Message, *, optional_reasoning: bool) -> list[_Piece]:
    """The texts of a message in the order of `_marked`."""
    pieces = []
    thought = f"the reasoning of {message.name}"
    if message.reasoning.strip():
        pieces.append(_Piece(index, message.reasoning.strip(), thought, optional_reasoning, False, False))
    parts = split_thinking(message.content) if message.role == "assistant" else [(message.content, False)]
    for text, is_thinking in parts:
        if text.strip():
            what = thought if is_thinking else f"{message.name} ({message.role})"
            may_lack = is_thinking and optional_reasoning
            pieces.append(_Piece(index, text.strip(), what, may_lack, True, message.role in INSTRUCTING))
    return pieces


def _marked(message: Message, numbers: Iterator[int]) -> Message:
    def mark(text: str) -> str:
        core = text.strip()
        if not core:
            return text
        before, _, after = text.partition(core)
        digits = "".join(chr(_ZERO + int(digit)) for digit in str(next(numbers)))
        return f"{before}{_OPEN}{digits}{_NUMBERED}{core}{_CLOSE}{after}"

    reasoning = mark(message.reasoning)
    if message.role != "assistant":
        return replace(message, reasoning=reasoning, content=mark(message.content))
    marked, position = "", 0
    for text, _ in split_thinking(message.content):
        at = message.content.index(text, position)
        marked += message.content[position:at] + mark(text)
        position = at + len(text)
    return replace(message, reasoning=reasoning, content=marked + message.content[position:])


def _without_marks(text: str) -> tuple[str, dict[int, Span]]:
    plain, position = "", 0
    spans: dict[int, Span] = {}
    opened: tuple[int, int] | None = None
    for match in _MARK.finditer(text):
        plain += text[position : match.start()]
        position = match.end()
        if match[1]:
            opened = int("".join(str(ord(digit) - _ZERO) for digit in match[1])), len(plain)
        elif opened is not None:
            spans.setdefault(opened[0], (opened[1], len(plain)))
            opened = None
    return plain + text[position:], spans


def _searched_spans(pieces: Sequence[_Piece], whole: str) -> dict[int, Span]:
    """Where pieces stand in the order of the conversation, by search; what is not found has no entry."""
    spans: dict[int, Span] = {}
    position = 0
    for number, piece in enumerate(pieces):
        for form in (piece.text, *json_forms(piece.text)):
            at = whole.find(form, 0 if piece.anywhere else position)
            if at >= 0:
                spans[number] = (at, at + len(form))
                position = position if piece.anywhere else at + len(form)
                break
    return spans


def _contents(pieces: Sequence[_Piece], spans: dict[int, Span]) -> dict[int, Span]:
    found: dict[int, Span] = {}
    for number, piece in enumerate(pieces):
        if piece.of_content and number in spans:
            start, end = spans[number]
            found[piece.index] = (min(start, found.get(piece.index, (start, 0))[0]), end)
    return found
