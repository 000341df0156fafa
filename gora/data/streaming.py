"""From the recipe's `data` section to a stream of examples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gora.data.checking import Checker, refuse_ignored_columns
from gora.data.encode import Encoder
from gora.data.encode_text import TextEncoder
from gora.data.formats import format_for
from gora.data.remarks import answer_for_bad_rows
from gora.data.row_key import settings_key
from gora.data.sources import find_source
from gora.data.stream import Block, Stream, StreamedSource, shares_of
from gora.recipe.data_schema import MixedSource
from gora.recipe.schema import DataSection, Head
from gora.recipe.sources import sources_of
from gora.runtime.row_cache import row_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OF_THIS_MACHINE = ("code", "libraries")


@dataclass(frozen=True, kw_only=True)
class OpenedStream:
    """A stream of which nothing has been read.

    Attributes:
        stream: the stream.
        identity: what its examples follow from, apart from the content of files: JSON.
    """

    stream: Stream
    identity: Any

    def fingerprint(self, head: Block) -> str:
        """SHA-256 over the identity and over the examples of the first block, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.identity, head.fingerprint], sort_keys=True).encode()).hexdigest()


def open_stream(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder | TextEncoder,
    seed: int,
    *,
    head: Head,
    encoder_decoder: bool,
    step_rows: int,
    shape: dict[str, Any],
) -> OpenedStream:
    """Find the sources of a stream.

    Args:
        data: the recipe's section.
        tokenizer: what turns text into ids.
        encoder: makes examples.
        seed: of the order.
        head: what the model has on top.
        encoder_decoder: whether the model has an encoder.
        step_rows: rows of an optimizer step, of which a block has a multiple.
        shape: what `Examples` is to know.

    Raises:
        InputError: a source is not there, or has too small a share.
    """
    settled = sources_of(data, "train")
    settings = [settings_key(each.data, tokenizer, head=head, encoder_decoder=encoder_decoder) for each in settled]
    found = [find_source(each.section, ("train",), streaming=True) for each in settled]
    size = step_rows * math.ceil(data.shuffle_buffer / step_rows)
    shares = shares_of(size, [_weight(each.section) for each in settled])
    streamed = []
    for each, source, share in zip(settled, found, shares, strict=True):
        fmt = format_for(each.data, tokenizer, typed=source.typed, head=head)
        refuse_ignored_columns(fmt, each.data.ignore)
        streamed.append(StreamedSource(source=source, check=Checker(fmt, each.data.ignore, encoder), per_block=share))
    named = [each.section.model_dump(mode="json", include={"separator", "max_rows"}) for each in settled]
    place = [[source.identity(), section, share] for source, section, share in zip(found, named, shares, strict=True)]
    key = _digest([settings, place, [source.states() for source in found]])[:32]
    notes = list(dict.fromkeys(note for each in streamed for note in each.check.fmt.notes()))
    stream = Stream(
        streamed,
        encoder,
        entry=lambda number: (row_folder(data.cache) / f"{key}-{number}").absolute(),
        seed=seed,
        shape=shape,
        answer=lambda block: _answer(data, notes, block),
    )
    anywhere = [{name: value for name, value in each.items() if name not in _OF_THIS_MACHINE} for each in settings]
    return OpenedStream(stream=stream, identity=[anywhere, place, seed])


def _weight(section: Any) -> float:
    return section.weight or 1.0 if isinstance(section, MixedSource) else 1.0


def _answer(data: DataSection, notes: Sequence[str], block: Block) -> list[str]:
    """What is to be said of a block; raises InputError where rows are bad and must not be."""
    lines = [] if block.number else [*notes, *block.notices]
    answer_for_bad_rows(data, block.facts, lines.append)
    return lines


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
