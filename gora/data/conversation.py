"""A row's list of messages, as it was written, becomes a conversation: roles, texts, reasoning and tool calls.

Nothing here knows a chat template. What a message says beside its text is kept, and what cannot be kept is refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gora.data.messages import described, did_you_mean, quoted
from gora.data.rows import Unusable
from gora.data.segments import from_json
from gora.data.tool_calls import read_calls

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""Every role that a message may name, and the role that it has here."""

INSTRUCTING = ("system", "developer")
REASONING = ("reasoning_content", "thinking", "reasoning")

_KEYS = (("role", "content"), ("from", "value"))
_READ = {"tool_calls", "function_call", "weight", "train", *REASONING}
_NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    Attributes:
        role: a value of `ROLES`.
        content: its text; empty where it only calls tools.
        name: what messages about it call it: `message 2`.
        reasoning: what the assistant thought before it wrote the content.
        tool_calls: `{"type": "function", "function": {"name": ..., "arguments": ...}}`, arguments parsed.
        more: its other keys, which a template may read.
        trains: what `weight` or `train` says of it; None where neither is there.
    """

    role: str
    content: str
    name: str
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    trains: bool | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is anything to learn from it."""
        return bool(self.content.strip() or self.reasoning.strip() or self.tool_calls)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a row says.

    Attributes:
        messages: the messages, the recipe's system message in front where the row has none.
        tools: the tools that the assistant may call.
        dropped: how many turns of the assistant stood in front and were dropped.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    dropped: int


def read_messages(value: Any, column: str) -> list[Message]:
    """The messages of a conversation, from a list or the JSON text of one.

    Raises:
        Unusable: it is not a list of messages, a role is unknown, or there is no turn of the assistant.
    """
    value = from_json(value, f"column {column!r}")
    if not isinstance(value, list):
        raise Unusable(f"column {column!r} must be a list of messages, not {described(value)}")
    if not value:
        raise Unusable(f"column {column!r} is an empty list")
    return [read_message(item, f"message {number}") for number, item in enumerate(value, start=1)]


def read_message(item: Any, name: str) -> Message:
    """One message; a key that is null counts as missing, since tables write it so. Raises Unusable."""
    if not isinstance(item, dict):
        raise Unusable(f"{name} must be an object with role and content, not {described(item)}")
    role_key, content_key = _keys_of(item, name)
    role = _role(item[role_key], name)
    read = {role_key, content_key, *_READ}
    for key in _NOT_TEXT:
        if item.get(key):
            raise Unusable(f"{name} has {key!r}: only text is read")
    message = Message(
        role=role,
        content="",
        name=name,
        reasoning=_reasoning(item, name),
        tool_calls=_calls(item, role, name),
        more={key: each for key, each in item.items() if key not in read and each not in (None, "", [], {})},
        trains=_trains(item, name),
    )
    if item[role_key] == "function_call":
        return replace(message, tool_calls=read_calls(item[content_key], f"{name}: {content_key}"))
    message = replace(message, content=_content(item.get(content_key), message, content_key))
    if role == "assistant" and message.trains is not False and not message.says_something:
        raise Unusable(f"{name}: the assistant's {content_key} is empty: there is nothing to train on")
    return message


def from_first_question(messages: Sequence[Message], *, drop: bool) -> tuple[list[Message], int]:
    """The conversation from where there is something to answer, and how many turns stood before.

    Args:
        messages: the conversation.
        drop: leave out turns of the assistant in front of the first message that is not its own.

    Raises:
        Unusable: it starts with the assistant, and those turns are not to be dropped or are all there is.
    """
    front = next((index for index, each in enumerate(messages) if each.role not in INSTRUCTING), len(messages))
    first = next((index for index in range(front, len(messages)) if messages[index].role != "assistant"), None)
    if drop and first is not None:
        return [*messages[:front], *messages[first:]], first - front
    if messages[0].role == "assistant":
        raise Unusable(
            "the conversation starts with the assistant, so there is nothing to answer "
            "(`data.first_turn: drop` begins it with the message after)"
        )
    return list(messages), 0


def unanswered(messages: Sequence[Message], train_on: str | Iterable[str]) -> int:
    """How many messages stand behind the last one of a role that is trained: nothing is learned from them."""
    roles = _roles_of(train_on)
    return next(count for count, message in enumerate(reversed(messages)) if message.role in roles)


def _roles_of(train_on: str | Iterable[str]) -> set[str]:
    return {"assistant"} if isinstance(train_on, str) else set(train_on)


def trained_turns(messages: Sequence[Message], train_on: str | Iterable[str]) -> list[int]:
    """The indices of the messages that carry a loss.

    Args:
        messages: the conversation.
        train_on: `all` or `last` of the assistant's turns, or the roles whose turns are trained.

    Raises:
        Unusable: there are none.
    """
    roles = _roles_of(train_on)
    asked = [index for index, message in enumerate(messages) if message.role in roles]
    if not asked:
        who = "assistant turn" if roles == {"assistant"} else f"turn of {' or '.join(sorted(roles))}"
        raise Unusable(f"the conversation has no {who}: there is nothing to train on")
    if train_on == "last":
        asked = asked[-1:]
    found = [index for index in asked if messages[index].trains is not False and messages[index].says_something]
    if not found:
        raise Unusable("every turn that could be trained has weight 0 or train false: there is nothing to train on")
    return found


def unheeded(messages: Sequence[Message], roles: Iterable[str]) -> list[str]:
    """Marks that ask for the training of turns whose role is not trained."""
    roles = set(roles)
    return [
        f"weight or train of a message of role {message.role}, which `data.train_on` does not train"
        for message in messages
        if message.trains and message.role not in roles
    ]


def _keys_of(item: dict[str, Any], name: str) -> tuple[str, str]:
    for role_key, content_key in _KEYS:
        speaks = content_key in item or any(item.get(key) for key in ("tool_calls", "function_call", *REASONING))
        if item.get(role_key) is not None and speaks:
            return role_key, content_key
    raise Unusable(f"{name} has neither role and content nor from and value; it has {quoted(map(str, item))}")


def _role(role: Any, name: str) -> str:
    if not isinstance(role, str) or role not in ROLES:
        near = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        raise Unusable(f"{name} has the role {role!r}; known are {quoted(ROLES)}{near}")
    return ROLES[role]


def _content(content: Any, message: Message, key: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, number, message.name, key) for number, part in enumerate(content, start=1))
    if content is None and (message.tool_calls or message.reasoning or message.trains is False):
        return ""
    raise Unusable(f"{message.name}: {key} must be text, not {described(content)}")


def _part(part: Any, number: int, name: str, key: str) -> str:
    where = f"{name}: part {number} of {key}"
    if not isinstance(part, dict) or "type" not in part:
        raise Unusable(f"{where} must be an object with type and text, not {described(part)}")
    if part["type"] != "text":
        raise Unusable(f"{where} is of type {part['type']!r}: only text is read")
    if not isinstance(part.get("text"), str):
        raise Unusable(f"{where}: text must be text, not {described(part.get('text'))}")
    return str(part["text"])


def _reasoning(item: dict[str, Any], name: str) -> str:
    found = {key: item[key] for key in REASONING if item.get(key)}
    for key, value in found.items():
        if not isinstance(value, str):
            raise Unusable(f"{name}: {key} must be text, not {described(value)}")
    if len(set(found.values())) > 1:
        raise Unusable(f"{name} has different texts in {quoted(found)}; keep one of them")
    return next(iter(found.values()), "")


def _calls(item: dict[str, Any], role: str, name: str) -> tuple[dict[str, Any], ...]:
    found = [read_calls(item[key], f"{name}: {key}") for key in ("tool_calls", "function_call") if item.get(key)]
    if found and role != "assistant":
        raise Unusable(f"{name} calls tools, which only the assistant does; its role is {role}")
    if len(found) > 1:
        raise Unusable(f"{name} has both tool_calls and function_call; keep tool_calls")
    return found[0] if found else ()


def _trains(item: dict[str, Any], name: str) -> bool | None:
    marks = {key: item[key] for key in ("weight", "train") if item.get(key) is not None}
    for key, value in marks.items():
        if value not in (0, 1):
            raise Unusable(f"{name}: {key} must be 0 or 1 (false or true), not {described(value)}")
    return all(marks.values()) if marks else None
