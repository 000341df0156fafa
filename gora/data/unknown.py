"""Rows whose words the tokenizer does not know: it belongs to another model or language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gora.data.examples import Examples
from gora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1000
_MOST_UNKNOWN = 1 / 2


def refuse_unknown_words(tokenizer: PreTrainedTokenizerBase, examples: Examples) -> None:
    """Refuse rows of which most tokens are the one that stands for unknown words, by the first thousand of them.

    Raises:
        InputError: with the share.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return
    ids = [token for index in range(min(len(examples), _ROWS)) for token in examples[index]["input_ids"]]
    share = ids.count(unknown) / len(ids)
    if share > _MOST_UNKNOWN:
        raise InputError(
            f"The tokenizer does not know the words of the rows: {share:.0%} of their tokens are "
            f"{tokenizer.unk_token!r}. Name the right tokenizer with model.tokenizer."
        )
