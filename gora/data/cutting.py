"""Long texts are cut before they are tokenised, where that cannot change the tokens that are kept.

Only the first `max_length` tokens of a row are kept. Of a text far longer than those could be, a short piece and one
more than twice as long are tokenised. Where both start with the same tokens, more of them than are kept, the text
behind the short piece has no say in them. Pieces end in front of a space, since no tokenizer of words reaches over it.
Within a word only pieces of tokenizers are cut that work from left to right (BPE, WordPiece); Unigram looks for the
best segmentation of a word as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gora.data.segments import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = 64
"""Tokens beyond those that are kept which must be the same, too."""
_CHARACTERS = 6
"""Characters of the first piece for each of these tokens."""
_WORTH_IT = 4
"""How many times as long as the first piece a text must be."""
_BEFORE_SPACE = re.compile(r"\w(?= )")
_SEARCHED = 10_000
_WITHIN_WORDS = ("BPE", "WordPiece", "WordLevel")


class Cutter:
    """Cuts texts.

    Args:
        tokenizer: the tokenizer.
        tokens: its ids of texts, without special tokens.
        max_length: tokens of a row that are kept.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokens: Callable[[list[str]], list[list[int]]], max_length: int
    ) -> None:
        self._tokens, self._needed = tokens, max_length + _MARGIN
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._within_words = type(getattr(backend, "model", None)).__name__ in _WITHIN_WORDS

    def text(self, text: str) -> str:
        """The start of a text, with more tokens than are kept and the same ones; all of a text that is not so long."""
        size = self._needed * _CHARACTERS
        while len(text) > _WORTH_IT * size:
            # One more than twice the size: what goes by twos or threes from the end of a text starts differently.
            short, longer = self._piece(text, size), self._piece(text, 2 * size + 1)
            first, second = self._tokens([short, longer])
            if len(first) >= self._needed and first[: self._needed] == second[: self._needed]:
                return short
            size *= _WORTH_IT
        return text

    def segments(self, segments: Sequence[Segment]) -> list[Segment]:
        """The first segments of a row, with more tokens than are kept and the same ones."""
        size = self._needed * _CHARACTERS
        if sum(len(segment.text) for segment in segments) <= _WORTH_IT * size:
            return list(segments)
        kept: list[Segment] = []
        pending: list[str] = []
        found = 0
        for segment in segments:
            text = self.text(segment.text)
            if len(text) < len(segment.text):
                return [*kept, _start_of(segment, len(text))]
            kept.append(segment)
            pending.append(text)
            if sum(map(len, pending)) > size:
                # Each is tokenised on its own, and those that follow have no say in it.
                found += sum(map(len, self._tokens(pending)))
                pending.clear()
            if found >= self._needed:
                break
        return kept

    def _piece(self, text: str, size: int) -> str:
        """About `size` characters from the start, up to the next space."""
        searched = size + _SEARCHED if self._within_words else len(text)
        space = _BEFORE_SPACE.search(text, size, searched)
        if space:
            return text[: space.end()]
        return text[:size] if self._within_words else text


def _start_of(segment: Segment, end: int) -> Segment:
    spans = segment.spans
    if spans is not None:
        spans = tuple((first, min(last, end)) for first, last in spans if first < end)
    return Segment(segment.text[:end], segment.supervised, spans)
