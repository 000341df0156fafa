"""The chat format: a list of messages, rendered by a chat template, of which the assistant's turns are trained."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gora.data.conversation import (
    INSTRUCTING,
    Conversation,
    Message,
    from_first_question,
    read_message,
    read_messages,
    trained_turns,
    unanswered,
    unheeded,
)
from gora.data.messages import described
from gora.data.reading import Reading
from gora.data.rendering import ChatTemplate
from gora.data.rows import Untrained, Unusable
from gora.data.segments import Segment, code_only, column_of, joined
from gora.data.templates import puts_bos_in_front
from gora.data.thinking import empty_block
from gora.data.tool_calls import read_tools
from gora.data.written import Span, check_written
from gora.recipe.schema import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSED_COLUMNS = {
    "functions": "set `data.tools: functions`, or name the column in `data.ignore`",
    "tools": "set `data.tools: tools`, or name the column in `data.ignore`",
}
"""Columns that say something a conversation needs, and what to do where nothing reads them."""


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
        self._template = ChatTemplate(data.chat_template, tokenizer)
        added = (token for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._ends = tuple(filter(None, map(str, [*tokenizer.all_special_tokens, *added])))

    @property
    def title(self) -> str:
        """`format chat, template chatml`."""
        return f"format chat, {self._template.title}"

    @property
    def columns(self) -> dict[str, str]:
        """The column with the messages."""
        return {self._data.messages: "data.messages"}

    @property
    def optional(self) -> set[str]:
        """The column with the tools, and one with a system message."""
        return {self._data.tools, "system"}

    @property
    def refused(self) -> dict[str, str]:
        """Columns that say something a conversation needs, and what to do where nothing reads them."""
        return REFUSED_COLUMNS

    def read(self, row: dict[str, Any]) -> Reading:
        """The examples of one row: one, or one for each trained turn with `data.turns: separate`.

        With `data.supervise: code` only what is code in those turns is trained, and the end of those that have any.

        Raises:
            Unusable: the conversation cannot be read, or the template does not write all of it.
            Untrained: nothing of it is trained.
        """
        conversation = self.conversation(row)
        messages = conversation.messages
        trained = trained_turns(messages, self._data.train_on)
        unread = unheeded(messages, {messages[index].role for index in trained})
        unread += ["turn of the assistant in front of the first question"] * conversation.dropped
        unread += ["turn behind the last answer"] * unanswered(messages, self._data.train_on)
        if self._data.turns == "together":
            upto, whole, segments = self._together(conversation, trained)
            return Reading([joined(segments)], [*unread, *self._template.unread(upto, whole)])
        examples, names = [], []
        for index in trained:
            upto, whole, segments = self._alone(conversation, index)
            with suppress(Untrained):
                examples.append(joined(segments))
                names.append(messages[index].name)
        if not examples:
            raise Untrained
        return Reading(examples, [*unread, *self._template.unread(upto, whole)], names)

    def conversation(self, row: dict[str, Any]) -> Conversation:
        """What a row says; raises Unusable."""
        messages = read_messages(column_of(row, self._data.messages), self._data.messages)
        tools = row.get(self._data.tools)
        system = _system_of(row, self._data.messages)
        if system and messages[0].role in INSTRUCTING:
            raise Unusable("column 'system' and the first message are both a system message; keep one of them")
        messages = [*([read_message(_system(system), "column 'system'")] if system else []), *messages]
        messages, dropped = from_first_question(messages, drop=self._data.first_turn == "drop")
        return Conversation(
            tuple(self._with_system(messages)), tuple(read_tools(tools, self._data.tools)) if tools else (), dropped
        )

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """What stands before the assistant's answer to a conversation; raises Unusable."""
        given = self._with_system(
            [
                Message(role=message["role"], content=message["content"], name=f"message {number}")
                for number, message in enumerate(messages, start=1)
            ]
        )
        text = self._template.render(given, prompt=True)
        check_written(self._template, given, (), text, reasoning_from=len(given), prompt=True)
        return text

    def notes(self) -> list[str]:
        """A warning where the template does not fit the tokenizer."""
        try:
            rendered = self._template.render([Message(role="user", content="x", name="message 1")])
        except Unusable:
            rendered = ""
        title, bos, notes = self._template.title, str(self._tokenizer.bos_token), []
        if puts_bos_in_front(self._tokenizer) and rendered and not rendered.startswith(bos):
            notes.append(
                f"The {title} does not write {bos}, which this tokenizer puts in front of every text. "
                f"It is trained with {bos} in front: send it when you generate, too."
            )
        if "<|im_start|>" in rendered and "<|im_start|>" not in self._tokenizer.get_vocab():
            notes.append(
                f"This tokenizer has no token <|im_start|>: the {title} spells its marks in ordinary "
                "tokens. `data.chat_template: plain` needs no marks."
            )
        return notes

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self._data.system is None or messages[0].role in INSTRUCTING:
            return list(messages)
        return [read_message(_system(self._data.system), "data.system"), *messages]

    def _together(
        self, conversation: Conversation, trained: Sequence[int]
    ) -> tuple[Sequence[Message], str, list[Segment]]:
        """All trained turns in one text.

        The borders of a turn come from the template itself: what it renders before the turn, with the prompt for an
        answer, and what it renders with the turn. So what is before a turn is what a server sends to the model.
        """
        messages, tools = conversation.messages[: trained[-1] + 1], conversation.tools
        whole = self._template.render(messages, tools)
        spans = check_written(self._template, messages, tools, whole)
        segments: list[Segment] = []
        done = 0
        for index in trained:
            start, end = self._borders(messages, index, tools, whole)
            start = self._start(messages[index], start, spans.get(index))
            if not done <= start <= end:
                raise Unusable(f"the {self._template.title} renders {messages[index].name} as nothing of its own")
            segments += [Segment(whole[done:start], False), *self._turn(whole, start, end, messages[index])]
            done = end
        return messages, whole, segments

    def _alone(self, conversation: Conversation, index: int) -> tuple[Sequence[Message], str, list[Segment]]:
        """One turn behind the conversation before it, as the template writes it when it is the last."""
        messages, tools = conversation.messages[: index + 1], conversation.tools
        whole = self._template.render(messages, tools)
        spans = check_written(self._template, messages, tools, whole, reasoning_from=index)
        start, end = self._borders(messages, index, tools, whole)
        start = self._start(messages[index], start, spans.get(index))
        return messages, whole, [Segment(whole[:start], False), *self._turn(whole, start, end, messages[index])]

    def _borders(
        self, messages: Sequence[Message], index: int, tools: Sequence[dict[str, Any]], whole: str
    ) -> tuple[int, int]:
        """Where a turn starts and ends in the whole conversation; raises Unusable."""
        before = messages[:index]
        prompt = messages[index].role == "assistant"
        start = self._template.render(before, tools, prompt=prompt) if before else ""
        end = whole if index == len(messages) - 1 else self._template.render(messages[: index + 1], tools)
        if not whole.startswith(start):
            raise Unusable(self._why_different(messages, index, start, whole, tools))
        if not whole.startswith(end):
            end = self._without_last_end(end)
        if not whole.startswith(end):
            raise Unusable(self._different(index + 1))
        return len(start), len(end)

    def _without_last_end(self, text: str) -> str:
        """A conversation without the end-of-sequence token that some templates write behind the end of its last one."""
        eos = str(self._tokenizer.eos_token or "")
        turns = text.rstrip().removesuffix(eos) if eos else text
        return turns if turns.rstrip().endswith(self._ends) else text

    def _different(self, count: int) -> str:
        return (
            f"the {self._template.title} renders the first {count} messages differently when others follow, so the "
            "answers cannot be told apart (`data.turns: separate` trains every turn as the last one)"
        )

    def _why_different(
        self, messages: Sequence[Message], index: int, start: str, whole: str, tools: Sequence[dict[str, Any]]
    ) -> str:
        """Separate turns help where what stands before the prompt differs, and not where the prompt itself does."""
        bare = self._template.render(messages[:index], tools)
        if start.startswith(bare) and whole.startswith(bare):
            return (
                f"the {self._template.title} writes {start[len(bare) :]!r} to ask for {messages[index].name}, but not "
                "where it writes that message itself, so it cannot be trained as it would be asked for "
                "(`data.chat_template` names another one)"
            )
        return self._different(index)

    def _start(self, message: Message, start: int, content: Span | None) -> int:
        """Who speaks stands before a turn; only the assistant's prompt tells where that ends, so others begin at their
        text."""
        if message.role == "assistant":
            return start
        if content is None:
            raise Unusable(f"the {self._template.title} does not show where {message.name} starts")
        return content[0]

    def _turn(self, whole: str, start: int, end: int, message: Message) -> list[Segment]:
        """A turn ends with the token that ends it; white space that a template puts after that is not learned, nor is
        a thinking block without a text."""
        text = whole[start:end]
        if message.role == "assistant" and not message.reasoning.strip():
            unthought = empty_block(whole[:start], text, message.content)
        else:
            unthought = 0
        body = text[unthought:].rstrip()
        learned = body if body.endswith(self._ends) else text[unthought:]
        answer = Segment(learned, True)
        if self._data.supervise == "code":
            answer = code_only(answer, message.content)
        return [Segment(text[:unthought], False), answer, Segment(text[unthought + len(learned) :], False)]


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _system_of(row: dict[str, Any], messages: str) -> str | None:
    value = row.get("system") if messages != "system" else None
    if value is not None and not isinstance(value, str):
        raise Unusable(f"column 'system' must be text, not {described(value)}")
    return value or None
