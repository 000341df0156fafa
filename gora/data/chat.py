"""The chat format: a list of messages, rendered by a chat template, of which the assistant's turns are trained."""

import datetime
from typing import TYPE_CHECKING, Any

from gora.data.messages import described, did_you_mean, quoted
from gora.data.rows import Unusable
from gora.data.segments import Segment, code_only, column_of, joined
from gora.data.templates import named_template, puts_bos_in_front
from gora.errors import InputError
from gora.recipe.schema import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
"""Every role that a message may name, and the role that the chat template is given."""

_KEYS = (("role", "content"), ("from", "value"))
_FIXED_DAY = datetime.datetime(2024, 7, 26)

Message = dict[str, str]


class Chat:
    """Rows with a list of messages.

    Args:
        data: the recipe's section.
        tokenizer: its own chat template is used when the recipe names none.

    Raises:
        InputError: there is no template.
    """

    def __init__(self, data: DataSection, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._template, self._template_name = named_template(data.chat_template, tokenizer)

    @property
    def title(self) -> str:
        """`format chat, template chatml`."""
        return f"format chat, {self._template_name}"

    @property
    def columns(self) -> dict[str, str]:
        """The column with the messages."""
        return {self._data.messages: "data.messages"}

    def read(self, row: dict[str, Any]) -> list[Segment]:
        """The segments of one row, neighbours of one kind joined; raises Unusable."""
        return joined(self.segments(row))

    def segments(self, row: dict[str, Any]) -> list[Segment]:
        """The conversation up to its last assistant turn, every assistant turn supervised; raises Unusable.

        With `data.supervise: code` only what is code in those turns is trained, and the end of those that have any.

        The borders of a turn come from the template itself: what it renders before the turn, with the prompt for an
        answer, and what it renders with the turn. So what is before a turn is what a server sends to the model.
        """
        messages = self._with_system(read_messages(column_of(row, self._data.messages), self._data.messages))
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if answers[0] == 0:
            raise Unusable("the conversation starts with the assistant, so there is nothing to answer")
        whole = self._rendered(messages[: answers[-1] + 1])
        segments: list[Segment] = []
        done = 0
        for index in answers:
            start = self._border(messages[:index], whole, prompt=True)
            end = self._border(messages[: index + 1], whole, prompt=False)
            if not done <= start <= end:
                raise Unusable(f"{self._template_name} renders message {index + 1} as nothing of its own")
            segments += [Segment(whole[done:start], False), *self._answer(whole[start:end], messages[index]["content"])]
            done = end
        return segments

    def prompt(self, messages: list[Message]) -> str:
        """What stands before the assistant's answer to a conversation; raises Unusable."""
        return self._rendered(self._with_system(messages), prompt=True)

    def notes(self) -> list[str]:
        """A warning where the template does not fit the tokenizer."""
        rendered = self._rendered([{"role": "user", "content": "x"}], strict=False)
        bos, notes = str(self._tokenizer.bos_token), []
        if puts_bos_in_front(self._tokenizer) and rendered and not rendered.startswith(bos):
            notes.append(
                f"The {self._template_name} does not write {bos}, which this tokenizer puts in front of every text. "
                f"It is trained with {bos} in front: send it when you generate, too."
            )
        if "<|im_start|>" in rendered and "<|im_start|>" not in self._tokenizer.get_vocab():
            notes.append(
                f"This tokenizer has no token <|im_start|>: the {self._template_name} spells its marks in ordinary "
                "tokens. `data.chat_template: plain` needs no marks."
            )
        return notes

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._data.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._data.system}, *messages]

    def _border(self, messages: list[Message], whole: str, *, prompt: bool) -> int:
        """Where the rendering of the first messages ends within the whole conversation."""
        part = self._rendered(messages, prompt=prompt)
        if not whole.startswith(part):
            raise Unusable(
                f"the {self._template_name} renders the first {len(messages)} messages differently when others follow, "
                "so the answers cannot be told apart (`data.chat_template: chatml` or `plain` can)"
            )
        return len(part)

    def _answer(self, text: str, content: str) -> list[Segment]:
        """A turn ends with the end-of-sequence token; white space that a template puts after it is not learned."""
        eos = str(self._tokenizer.eos_token or "")
        body, mark, after = text.rpartition(eos) if eos else ("", "", "")
        learned = body + mark if mark and not after.strip() else text
        answer = Segment(learned, True)
        if self._data.supervise == "code":
            answer = code_only(answer, content)
        return [answer, Segment(text[len(learned) :], False)]

    def _rendered(self, messages: list[Message], *, prompt: bool = False, strict: bool = True) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                add_generation_prompt=prompt,
                tokenize=False,
                # Templates that write today's date would make other tokens, and another fingerprint, every day.
                strftime_now=_FIXED_DAY.strftime,
            )
        except TemplateSyntaxError as error:
            raise InputError(
                f"The {self._template_name} is not valid Jinja: line {error.lineno}: {error.message}."
            ) from error
        except Exception as error:  # a template may raise anything, on purpose or not
            if not strict:
                return ""
            raise Unusable(f"the {self._template_name} fails: {str(error) or type(error).__name__}") from error
        return str(text)


def read_messages(value: Any, column: str) -> list[Message]:
    """The messages of a conversation as `role` and `content`, with the roles of `ROLES`.

    Raises:
        Unusable: it is no list of messages, a role is unknown, or no turn of the assistant says anything.
    """
    if not isinstance(value, list):
        raise Unusable(f"column {column!r} must be a list of messages, not {described(value)}")
    if not value:
        raise Unusable(f"column {column!r} is an empty list")
    messages = [_message(item, number) for number, item in enumerate(value, start=1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("the conversation has no assistant turn: there is nothing to train on")
    return messages


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise Unusable(f"message {number} must be an object with role and content, not {described(item)}")
    for role_key, content_key in _KEYS:
        if item.get(role_key) is not None and content_key in item:
            return {"role": _role(item[role_key], number), "content": _content(item, role_key, content_key, number)}
    raise Unusable(f"message {number} has neither role and content nor from and value; it has {quoted(map(str, item))}")


def _role(role: Any, number: int) -> str:
    if not isinstance(role, str) or role not in ROLES:
        near = did_you_mean(role, ROLES) if isinstance(role, str) else ""
        raise Unusable(f"message {number} has the role {role!r}; known are {quoted(ROLES)}{near}")
    return ROLES[role]


def _content(item: dict[str, Any], role_key: str, content_key: str, number: int) -> str:
    content = item[content_key]
    if not isinstance(content, str):
        raise Unusable(f"message {number}: {content_key} must be text, not {described(content)}")
    if ROLES[item[role_key]] == "assistant" and not content.strip():
        raise Unusable(f"message {number}: the assistant's {content_key} is empty: there is nothing to train on")
    return content
