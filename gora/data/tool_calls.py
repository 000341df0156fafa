"""Tools and the calls of tools, in the form of OpenAI's interface, and whether a text holds them."""

import json
from collections.abc import Iterator
from typing import Any

from gora.data.messages import described
from gora.data.rows import Unusable
from gora.data.segments import from_json


def read_tools(value: Any, column: str) -> list[dict[str, Any]]:
    """The tools of a row, from a list or the JSON text of one; a bare function is wrapped as servers do.

    Raises:
        Unusable: it is not a list of functions with names.
    """
    found = _objects(value, f"column {column!r}")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]
    for number, tool in enumerate(tools, start=1):
        _named(tool["function"], f"column {column!r}: tool {number}")
    return tools


def read_calls(value: Any, what: str) -> tuple[dict[str, Any], ...]:
    """Calls from a list, one object or the JSON text of either; arguments that are JSON text are parsed.

    Raises:
        Unusable: one of them has no name.
    """
    calls = []
    for number, call in enumerate(_objects(value, what), start=1):
        bare = call.get("function") is None
        function = _named(call if bare else call["function"], f"{what} {number}")
        arguments = _parsed(function.get("arguments", function.get("parameters")))
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        calls.append(made if bare else {**call, **made})
    return tuple(calls)


def with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as JSON text, which some templates want."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def holds_call(text: str, call: dict[str, Any]) -> str | None:
    """What of a call a text lacks: `the name`, `the arguments`, or None.

    Arguments are compared as parsed JSON. A template that writes them otherwise, such as `f(x=1)` or as elements of
    XML, must write every value.
    """
    function = call["function"]
    if not holds(text, function["name"]):
        return "the name"
    arguments = function["arguments"]
    as_json = any(arguments == found for found in _json_in(text))
    written = as_json or all(_holds_leaf(text, leaf) for leaf in _leaves(arguments))
    return None if written else "the arguments"


def in_python(text: str, call: dict[str, Any]) -> bool:
    """Whether a text has a call's arguments as Python shows them, which happens where a template prints an object."""
    arguments = call["function"]["arguments"]
    return isinstance(arguments, dict) and bool(arguments) and str(arguments) in text


def missing_tool(text: str, tools: list[dict[str, Any]]) -> str | None:
    """The name of the first tool of which a text lacks the name, the description or the name of a parameter.

    Templates write the types of parameters in many ways.
    """
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        texts = [function["name"], function.get("description") or "", *(properties or ())]
        if not all(holds(text, str(each)) for each in texts):
            return str(function["name"])
    return None


def holds(text: str, piece: str) -> bool:
    """Whether a text has a piece, stripped, as it is or as it stands within a JSON string."""
    core = piece.strip()
    return core in text or any(form in text for form in json_forms(core))


def json_forms(core: str) -> tuple[str, str]:
    """A text within a JSON string, with letters as they are and escaped."""
    return json.dumps(core, ensure_ascii=False)[1:-1], json.dumps(core)[1:-1]


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    value = from_json(value, what)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise Unusable(f"{what} must be a list of objects, not {described(value)}")
    for item in items:
        if not isinstance(item, dict):
            raise Unusable(f"{what} must be a list of objects, but holds {described(item)}")
    return items


def _named(function: Any, what: str) -> dict[str, Any]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise Unusable(f"{what} has no name")
    return function


def _parsed(arguments: Any) -> Any:
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _json_in(text: str) -> Iterator[Any]:
    """Every object that a text holds as JSON, those within others too."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            yield from _within(value)
        position = text.find("{", end)


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, list):
        for each in value:
            yield from _within(each)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _holds_leaf(text: str, leaf: Any) -> bool:
    """Templates write `true` as JSON or as Python does."""
    return holds(text, leaf) if isinstance(leaf, str) else json.dumps(leaf) in text or str(leaf) in text
