"""A row becomes what examples are encoded from: pieces of text, each trained on or not, or texts and their label."""

from typing import TYPE_CHECKING, Any, Protocol

from gora.data.chat import Chat
from gora.data.classification import Classification
from gora.data.instruction import Instruction
from gora.data.reading import Reading
from gora.data.text import PlainText
from gora.recipe.schema import DataSection, Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Format(Protocol):
    """A way from a row to what its encoder takes."""

    @property
    def title(self) -> str:
        """What messages call it: `format chat, template chatml`."""

    @property
    def columns(self) -> dict[str, str]:
        """The columns that rows must have, and the recipe key that asks for each."""

    @property
    def optional(self) -> set[str]:
        """The columns that it reads where they are there."""

    @property
    def refused(self) -> dict[str, str]:
        """Columns that must not go unread, and what to do about them."""

    def read(self, row: dict[str, Any]) -> Reading:
        """The examples of a row; raises Unusable or Untrained. The same row gives the same examples, always."""

    def notes(self) -> list[str]:
        """Whole sentences on what the user should know about this format with this tokenizer."""


def format_for(
    data: DataSection, tokenizer: "PreTrainedTokenizerBase", *, typed: bool = True, head: Head = "language"
) -> Format:
    """The format that the recipe asks for.

    Args:
        data: the recipe's section.
        tokenizer: gives the chat template.
        typed: `Rows.typed` of the rows to come.
        head: what the model has on top.

    Raises:
        InputError: the template does not exist or is malformed, or a chat has none.
    """
    if head == "classification":
        return Classification(data, typed=typed)
    if data.format == "text":
        return PlainText(data)
    if data.format == "chat":
        return Chat(data, tokenizer)
    return Instruction(data, typed=typed, eos=str(tokenizer.eos_token or ""))
