"""Segments become token ids and labels.

Every segment is tokenised on its own, so that the tokens of a prompt are exactly those which generation will see: no
token reaches over the border between a prompt and its answer. An answer of which only parts are trained is tokenised
whole all the same, since the model writes it in one go; a token that lies partly in a trained part is trained.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gora.data.code_blocks import Span
from gora.data.cutting import Cutter
from gora.data.segments import Segment
from gora.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not trained on."""

_BATCH = 1000  # rows given to the tokenizer at once: enough to fill its threads, few enough to fit beside the result
_ANCHORS = ("\n", ":")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example.

    Attributes:
        input_ids: token ids (int32).
        labels: the same ids where they are trained on, else -100; for an encoder-decoder, the ids of the response; for
            a classifier the number of the label alone.
        truncated: whether it was cut to the longest length allowed.
        token_types: for each id of a classifier's input, which text of a pair it belongs to; None where the tokenizer
            does not say.
    """

    input_ids: array[int]
    labels: array[int]
    truncated: bool = False
    token_types: array[int] | None = None


class Encoder:
    """Turns rows of segments into examples.

    Args:
        tokenizer: what turns text into ids.
        max_length: longest example in tokens; for an encoder-decoder each of input and labels.
        overlong: cut a longer example at its end, or leave it out.
        encoder_decoder: make the inputs of the encoder and the labels of the decoder instead of one sequence.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        overlong: Literal["truncate", "drop"],
        *,
        encoder_decoder: bool,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "The tokenizer has no end-of-sequence token, so a model could never learn to stop. "
                "Name one with `model.tokenizer`, or set `eos_token` in its tokenizer_config.json."
            )
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._max_length = max_length
        self._drop = overlong == "drop"
        self._encoder_decoder = encoder_decoder
        self._front = _own_front(tokenizer)
        self._anchor = _anchor(tokenizer)
        self._cutter = Cutter(tokenizer, lambda texts: self._tokenised(texts, special=False), max_length)

    def __call__(self, rows: Iterable[list[Segment]]) -> Iterator[Encoded | None]:
        """Encode rows of alternating segments, the last one supervised; None is a row that is left out.

        A row is left out when it is too long and `overlong` says so, or when the cut leaves nothing to train on.
        """
        rows = iter(rows)
        while batch := list(itertools.islice(rows, _BATCH)):
            yield from self._pairs(batch) if self._encoder_decoder else self._sequences(batch)

    def shortened(self, segments: list[Segment]) -> list[Segment]:
        """A row without what is too far behind its start to be kept: `__call__` makes the same example of it."""
        if not self._encoder_decoder:
            return self._cutter.segments(segments)
        head = "".join(segment.text for segment in segments[:-1])
        # An input whose last token is that of its end keeps it when it is cut, see `_cut_input`.
        if not head.rstrip().endswith(str(self._tokenizer.eos_token)):
            head = self._cutter.text(head)
        answer = self._cutter.segments(segments[-1:])
        return [*([Segment(head, False)] if head else []), *answer]

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """The ids that a model is given to go on from, the same as those before the response of an example."""
        if self._encoder_decoder:
            return [self._without_second_front(ids) for ids in self._tokenised(texts, special=True)]
        found = self._tokenised(texts, special=False)
        return [ids if ids[: len(self._front)] == self._front else self._front + ids for ids in found]

    def answers(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of prompts and of answers to them, as in an example, without what ends the sequence; nothing is cut.

        Args:
            pairs: the text before each answer, and the answer.
        """
        prompts = self.prompts([prompt for prompt, _ in pairs])
        if self._encoder_decoder:
            return list(zip(prompts, self._tokenised([answer for _, answer in pairs], special=False), strict=True))
        segments = [[Segment(prompt, False), Segment(answer, True)] for prompt, answer in pairs]
        found = [ids for ids, _ in self._tokenised_segments(segments)][1::2]
        return list(zip(prompts, found, strict=True))

    def _sequences(self, batch: list[list[Segment]]) -> Iterator[Encoded | None]:
        parts = iter(self._tokenised_segments(batch))
        for segments in batch:
            ids: list[int] = []
            labels: list[int] = []
            for segment in segments:
                part, ends = next(parts)
                ids += part
                labels += _labels(segment, part, ends)
            yield self._sequence(ids, labels)

    def _sequence(self, ids: list[int], labels: list[int]) -> Encoded | None:
        if ids[: len(self._front)] != self._front:
            ids, labels = self._front + ids, [IGNORED] * len(self._front) + labels
        if labels[-1:] != [self._eos]:
            ids, labels = [*ids, self._eos], [*labels, self._eos]
        # The first token has nothing before it from which it could be predicted.
        labels = [IGNORED, *labels[1:]]
        return self._fitted(ids, labels, ids[: self._max_length], labels[: self._max_length])

    def _pairs(self, batch: list[list[Segment]]) -> Iterator[Encoded | None]:
        """Only the last supervised segment is the decoder's; earlier turns of a conversation are the encoder's."""
        heads = ["".join(segment.text for segment in segments[:-1]) for segments in batch]
        inputs = self._tokenised(heads, special=True)
        answers = self._tokenised([segments[-1].text for segments in batch], special=False)
        for ids, labels in zip(inputs, answers, strict=True):
            ids = self._without_second_front(ids)
            labels = labels if labels[-1:] == [self._eos] else [*labels, self._eos]
            yield self._fitted(ids, labels, self._cut_input(ids), labels[: self._max_length])

    def _without_second_front(self, ids: list[int]) -> list[int]:
        """A text that starts with what the tokenizer puts in front by itself would have it twice."""
        doubled = bool(self._front) and ids[len(self._front) :][: len(self._front)] == self._front
        return ids[len(self._front) :] if doubled else ids

    def _cut_input(self, ids: list[int]) -> list[int]:
        """A tokenizer that ends its inputs with a token of its own keeps it when they are cut."""
        if len(ids) > self._max_length and ids[-1] == self._eos:
            return [*ids[: self._max_length - 1], self._eos]
        return ids[: self._max_length]

    def _fitted(self, ids: list[int], labels: list[int], cut_ids: list[int], cut_labels: list[int]) -> Encoded | None:
        truncated = len(cut_ids) < len(ids) or len(cut_labels) < len(labels)
        nothing_to_learn = not cut_ids or cut_labels.count(IGNORED) == len(cut_labels)
        if nothing_to_learn or (truncated and self._drop):
            return None
        return Encoded(array("i", cut_ids), array("i", cut_labels), truncated)

    def _tokenised_segments(self, batch: list[list[Segment]]) -> list[tuple[list[int], list[int]]]:
        """The ids of every segment of every row, one after the other, and where each token ends in the text.

        Ends are empty where all segments are trained as a whole.
        """
        texts = [segment.text for segments in batch for segment in segments]
        locate = any(segment.spans is not None for segments in batch for segment in segments)
        if self._anchor is None:
            return self._located(texts, locate=locate)
        first = [index == 0 for segments in batch for index in range(len(segments))]
        anchored = [text if is_first else self._anchor + text for text, is_first in zip(texts, first, strict=True)]
        mark = self._tokenised([self._anchor], special=False)[0]
        found = self._located(anchored, locate=locate)
        for index, (ids, ends) in enumerate(found):
            if first[index]:
                continue
            # A text that joins with the anchor (a second line break, say) is tokenised without one.
            if ids[: len(mark)] != mark:
                found[index] = self._located([texts[index]], locate=locate)[0]
            else:
                found[index] = ids[len(mark) :], [end - len(self._anchor) for end in ends[len(mark) :]]
        return found

    def _tokenised(self, texts: list[str], *, special: bool) -> list[list[int]]:
        # `verbose` would warn of texts beyond the model's length, which are cut later.
        made = self._tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in made["input_ids"]]

    def _located(self, texts: list[str], *, locate: bool) -> list[tuple[list[int], list[int]]]:
        if not locate:
            return [(ids, []) for ids in self._tokenised(texts, special=False)]
        made = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
        return [(list(ids), [end for _, end in offsets]) for ids, offsets in pairs]


def _labels(segment: Segment, ids: list[int], ends: list[int]) -> list[int]:
    if not segment.supervised:
        return [IGNORED] * len(ids)
    if segment.spans is None:
        return ids
    return [token if trained else IGNORED for token, trained in zip(ids, _within(segment.spans, ends), strict=True)]


def _within(spans: tuple[Span, ...], ends: list[int]) -> Iterator[bool]:
    """Which tokens have a character in one of the spans.

    A token is taken to start where the one before it ends: tokenizers differ in which of two tokens a space belongs
    to. Of a character that is spread over several tokens, all end where it does, and they go together.
    """
    start, trained = 0, False
    for end in ends:
        if end > start:
            trained = any(start < last and end > first for first, last in spans)
            start = end
        yield trained


def _own_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts in front of every text by itself: its beginning-of-sequence token, or nothing."""
    bare = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("x")["input_ids"])
    starts = [start for start in range(len(full)) if full[start : start + len(bare)] == bare]
    return full[: starts[0]] if starts else []


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A text to put before a segment that continues another one, or None where nothing is needed.

    SentencePiece tokenizers take the start of a text for the start of a word and put a space there. In the middle of an
    example that space would be one that generation never makes, so such segments are tokenised behind an anchor, whose
    tokens are then taken off.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for anchor in _ANCHORS:
        mark, continued = ids(anchor), ids(anchor + "x")
        if mark and continued[: len(mark)] == mark:
            return None if continued[len(mark) :] == ids("x") else anchor
    return None
