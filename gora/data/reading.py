"""What a row was read as."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOT_TEXT = dict.fromkeys(
    ("image", "images", "audio", "audios", "video", "videos"),
    "this format reads text only: leave these rows out, or name the column in `data.ignore`",
)
"""Columns that a text may speak of and no format reads, and what to do about them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a format made of a row.

    Attributes:
        examples: what the encoder takes, for each example: segments, the last one supervised, or a labelled text or
            image.
        unread: what of the row nobody reads, columns apart, in words that can be counted: `message key 'id'`.
        names: what tells the examples of the row apart, where there may be several: `message 4`.
    """

    examples: Sequence[Any]
    unread: Sequence[str] = ()
    names: Sequence[str] = ()
