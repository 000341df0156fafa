"""A conversation becomes text by its chat template."""

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gora.data.conversation import REASONING, Message
from gora.data.rows import Unusable
from gora.data.templates import named_template
from gora.data.tool_calls import holds, in_python, with_text_arguments
from gora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIXED_DAY = datetime.datetime(2024, 7, 26)
_DATE = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"'\\]*)(?P=quote)\s*\)""")


class ChatTemplate:
    """A chat template and how it is asked.

    Args:
        name: `data.chat_template`.
        tokenizer: its own chat template is used when there is no name.

    Attributes:
        title: what messages call it: `chat template 'chatml'`.

    Raises:
        InputError: there is no template.
    """

    def __init__(self, name: str | None, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        text, self.title = named_template(name, tokenizer)
        self._text = _on_a_fixed_day(text)

    def mentions(self, word: str) -> bool:
        """Whether the template's text has a word, such as the name of a key."""
        return re.search(rf"\b{re.escape(word)}\b", self._text) is not None

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: the conversation.
            tools: the tools that the model may call.
            prompt: end it with what stands before the assistant's next turn.

        Raises:
            Unusable: the template refuses the conversation.
            InputError: it is not valid Jinja.
        """
        given = [self._given(message) for message in messages]
        calls = [call for message in messages for call in message.tool_calls]
        try:
            text = self._rendered(given, tools, prompt)
            if not any(in_python(text, call) for call in calls):
                return text
        except Unusable:
            if not calls:
                raise
        # Servers give arguments as objects, as most templates expect them; some can only take them as text.
        for message in given:
            if "tool_calls" in message:
                message["tool_calls"] = [with_text_arguments(call) for call in message["tool_calls"]]
        return self._rendered(given, tools, prompt)

    def unread(self, messages: Sequence[Message], whole: str) -> list[str]:
        """The keys of messages that the template does not write, once for each message that has one."""
        return [
            f"message key {key!r}"
            for message in messages
            for key, value in message.more.items()
            if not self.mentions(key) or (isinstance(value, str) and not holds(whole, value))
        ]

    def _given(self, message: Message) -> dict[str, Any]:
        """The message as the template is given it, with its reasoning under the name that it reads."""
        role = message.role
        if role == "developer" and not self.mentions("developer"):
            role = "system"
        made: dict[str, Any] = {"role": role, "content": message.content}
        if message.reasoning:
            key = next((name for name in REASONING if self.mentions(name)), None)
            if key is None:
                raise Unusable(
                    f"the {self.title} has no place for the reasoning of {message.name}; write it into the content "
                    "between the marks that the model uses, such as <think> and </think>"
                )
            made[key] = message.reasoning
        if message.tool_calls:
            made["tool_calls"] = list(message.tool_calls)
        return made | {key: value for key, value in message.more.items() if self.mentions(key)}

    def _rendered(self, given: list[dict[str, Any]], tools: Sequence[dict[str, Any]], prompt: bool) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            text = self._tokenizer.apply_chat_template(
                given,
                tools=list(tools) or None,
                chat_template=self._text,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except TemplateSyntaxError as error:
            raise InputError(f"The {self.title} is not valid Jinja: line {error.lineno}: {error.message}.") from error
        except Exception as error:  # a template may raise anything, on purpose or not
            raise Unusable(f"the {self.title} fails: {str(error) or type(error).__name__}") from error
        return str(text)


def _on_a_fixed_day(template: str) -> str:
    """The template with a day of its own for today's date, which would make other tokens, and another fingerprint,
    every day. A function cannot be handed to a template: transformers gives it plain values only."""
    return _DATE.sub(lambda found: repr(_FIXED_DAY.strftime(found["format"])), template)
