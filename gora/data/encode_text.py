"""Texts and pairs of texts become a classifier's inputs, with the special tokens that its tokenizer puts round them."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from gora.data.classification import LabelledText
from gora.data.cutting import Cutter
from gora.data.encode import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000


class TextEncoder:
    """Turns labelled texts into examples of one label each.

    Args:
        tokenizer: what turns text into ids; special tokens, separators and token types are its own.
        max_length: longest example in tokens.
        overlong: cut a longer example, the longer text of a pair first and special tokens never, or leave it out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, overlong: Literal["truncate", "drop"] = "truncate"
    ) -> None:
        self._tokenizer, self._max_length, self._drop = tokenizer, max_length, overlong == "drop"
        self._cutter = Cutter(tokenizer, self._bare, max_length)
        self._odd = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) % 2 == 1

    def shortened(self, row: LabelledText) -> LabelledText:
        """A row without what is too far behind the start of a text to be kept: `__call__` makes the same example of it.

        Cut texts have more tokens than fit, each of them. Of two such texts half of what fits is kept each, and of an
        odd number one more of the longer one, which only whole texts tell.
        """
        if self._tokenizer.truncation_side != "right":
            return row
        text = self._cutter.text(row.text)
        if row.pair is None:
            return LabelledText(text, None, row.label)
        pair = self._cutter.text(row.pair)
        cut = len(text) < len(row.text) or len(pair) < len(row.pair)
        if cut and self._odd and all(len(ids) > self._max_length for ids in self._bare([text, pair])):
            return row
        return LabelledText(text, pair, row.label)

    def __call__(self, rows: Iterable[LabelledText]) -> Iterator[Encoded | None]:
        """Encode rows, all of them with a second text or none; None is a row that is left out for its length."""
        rows = iter(rows)
        while batch := list(itertools.islice(rows, _BATCH)):
            inputs = self._tokenised(batch)
            long = [index for index, ids in enumerate(inputs["input_ids"]) if len(ids) > self._max_length]
            cut = self._tokenised([batch[index] for index in long], truncation="longest_first") if long else {}
            for key, values in cut.items():
                for index, value in zip(long, values, strict=True):
                    inputs[key][index] = value
            overlong = set(long)
            for index, row in enumerate(batch):
                yield (
                    None if self._drop and index in overlong else _encoded(inputs, index, row.label, index in overlong)
                )

    def _bare(self, texts: list[str]) -> list[list[int]]:
        made = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in made["input_ids"]]

    def _tokenised(self, rows: Sequence[LabelledText], **settings: Any) -> dict[str, list[list[int]]]:
        pairs = [row.pair for row in rows] if rows[0].pair is not None else None
        if settings:
            settings["max_length"] = self._max_length
        # `verbose` would warn of texts beyond the model's length, which are cut later.
        made = self._tokenizer(
            [row.text for row in rows],
            pairs,  # type: ignore[arg-type]
            return_attention_mask=False,
            verbose=False,
            **settings,
        )
        return {key: list(made[key]) for key in ("input_ids", "token_type_ids") if key in made}


def _encoded(inputs: dict[str, list[list[int]]], index: int, label: int, truncated: bool) -> Encoded:
    types = array("i", inputs["token_type_ids"][index]) if "token_type_ids" in inputs else None
    return Encoded(array("i", inputs["input_ids"][index]), array("i", [label]), truncated, types)
