"""From a question to the text and the tokens that a model is given, in the prompt format that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gora.data.chat import Chat
from gora.data.classification import Classification, LabelledText
from gora.data.encode import Encoder
from gora.data.formats import Format, format_for
from gora.data.instruction import BETWEEN_TURNS, Instruction
from gora.data.messages import described, quoted
from gora.data.rows import Unusable
from gora.data.segments import column_of
from gora.errors import InputError
from gora.recipe.schema import DataSection, Head, SourceSection
from gora.recipe.sources import asked_as

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "question"
"""The column with a question, where nothing says another."""
_NOTED = (
    "format",
    "prompt",
    "prompt_pair",
    "response",
    "choices",
    "template",
    "train_on",
    "messages",
    "tools",
    "turns",
    "first_turn",
    "system",
    "text",
    "ignore",
    "max_length",
)
_NOTED_OF_IMAGES = ("format", "choices", "image", "label", "class_prompts", "ignore")


def describe_prompt_format(data: DataSection) -> dict[str, Any]:
    """What of a recipe's `data` section says how rows become text, as JSON; the chat template is the tokenizer's.

    Of several sources, it is the first one's.
    """
    noted = _NOTED_OF_IMAGES if data.format == "image" else _NOTED
    values = asked_as(data).model_dump(include=set(noted))
    return {name: values[name] for name in noted if name in values}


def read_prompt_format(note: Mapping[str, Any]) -> DataSection:
    """The `data` section of a note, whose rows are nowhere; raises pydantic's ValidationError."""
    return DataSection(train=SourceSection(path="-"), **note)


class Prompting:
    """Questions become prompts.

    Args:
        data: the prompt format that the model was trained on; None is its chat template, if it has one.
        tokenizer: the model's.
        head: what the model has on top.
        encoder_decoder: whether prompts go to an encoder.

    Raises:
        InputError: the prompt format is malformed.
    """

    def __init__(
        self,
        data: DataSection | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        head: Head = "language",
        encoder_decoder: bool = False,
    ) -> None:
        if data is None and tokenizer.chat_template and head == "language":
            data = read_prompt_format({"format": "chat"})
        self.data = data = asked_as(data) if data else None
        self._format: Format | None = format_for(data, tokenizer, head=head) if data else None
        length = data.max_length if data else 1024
        if head == "language":
            self._encoder = Encoder(tokenizer, length, "truncate", encoder_decoder=encoder_decoder)
        self._eos = str(tokenizer.eos_token)

    @property
    def title(self) -> str:
        """What messages call the prompt format: `format instruction, template qa`."""
        return self._format.title if self._format else "none: texts are continued as they are"

    @property
    def converses(self) -> bool:
        """Whether the prompt format has a place for a question of any kind."""
        if isinstance(self._format, Instruction):
            return self._format.asked == {self._prompt_column}
        return isinstance(self._format, Chat)

    @property
    def _prompt_column(self) -> str:
        return self.data.prompt if self.data else ""

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text before the answer to the last message.

        Raises:
            InputError: the prompt format has no place for it.
        """
        if isinstance(self._format, Chat):
            try:
                return self._format.prompt([dict(message) for message in messages])
            except Unusable as fault:
                raise InputError(f"A question cannot be asked in this prompt format: {fault}.") from fault
        if not self.converses:
            raise InputError(
                f"A question cannot be asked in this prompt format ({self.title}): it has no place for one. Give "
                "a run or an adapter trained on questions (--base asks its base model), or a model with a chat "
                "template."
            )
        return self._turns(messages)

    def _turns(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Instructions have no turns of their own: earlier ones stand before the last, each answer ended as trained."""
        text = ""
        for message in messages:
            if message["role"] == "assistant":
                text += f"{self.separator}{message['content'].strip()}{self._eos}{BETWEEN_TURNS}"
            elif message["role"] == "user":
                text += self._instruction.prompt({self._prompt_column: message["content"]})
            else:
                text += message["content"] + BETWEEN_TURNS
        return text

    def row(self, row: Mapping[str, Any]) -> str:
        """The text before the response to a row of columns, as in training.

        Raises:
            Unusable: the row lacks something.
            InputError: the prompt format is not made of columns.
        """
        return self._instruction.prompt(dict(row))

    def labelled(self, row: Mapping[str, Any]) -> LabelledText:
        """What a classification head reads of a row.

        Raises:
            Unusable: the row lacks something.
            InputError: the model has no such head.
        """
        if not isinstance(self._format, Classification):
            raise InputError(f"This model has no classification head ({self.title}).")
        return self._format.labelled(dict(row))

    @property
    def _instruction(self) -> Instruction:
        if not isinstance(self._format, Instruction):
            raise InputError(f"Columns of rows cannot be asked about in this prompt format ({self.title}).")
        return self._format

    @property
    def separator(self) -> str:
        """What a response to a row begins with; raises InputError where the prompt format is not made of columns."""
        return self._instruction.separator

    @property
    def choices(self) -> list[str]:
        """The texts of the labels that were trained.

        Raises:
            InputError: it was no classification.
        """
        if self.data is None or self.data.choices is None:
            asked = quoted(["data.choices"])
            raise InputError(f"This model was trained on no classification: its recipe has no {asked}.")
        return self.data.choices

    def question(self, row: Mapping[str, Any], column: str | None) -> str:
        """The text before the answer to a row of whoever asks: put into the trained prompt format, if there is one.

        Args:
            row: its columns.
            column: the one with the question; None is the one that was trained, or `question`.

        Raises:
            Unusable: the row lacks something.
            InputError: the prompt format has no place for a question.
        """
        if isinstance(self._format, Instruction):
            renamed = {self._prompt_column: column_of(dict(row), column)} if column else {}
            return self.row({**row, **renamed})
        text = column_of(dict(row), column or QUESTION)
        if not isinstance(text, str):
            raise Unusable(f"column {column or QUESTION!r} must be text, not {described(text)}")
        return text if self._format is None else self.conversation([{"role": "user", "content": text}])

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of prompts and of answers to them, as training would have them, without the end of the sequence.

        Args:
            pairs: the text before each answer, and the answer.
        """
        before = " " if self._format is None else ""
        separator = self.separator if isinstance(self._format, Instruction) else before
        return self._encoder.answers([(prompt, separator + answer) for prompt, answer in pairs])

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, the same as those before the response of an example in training."""
        return self._encoder.prompts(list(texts))
