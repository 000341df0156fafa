"""Which rows an optimizer step is made of, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """Indices of all rows in the order of an epoch."""
    generator = torch.Generator().manual_seed(seed + epoch)
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


def rows_of_step(step: int, *, rows: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the rows of an optimizer step, those of all processes.

    Args:
        step: counted from 1.
        rows: how many there are.
        batch_size: rows of a step over all processes; the last step of an epoch may have fewer.
        seed: of the data order.
    """
    epoch, place = divmod(step - 1, math.ceil(rows / batch_size))
    return epoch_order(rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def name_rows(places: Sequence[str], most: int | None = None) -> str:
    """`train.jsonl:812, 813; other.jsonl:4`: places such as `train.jsonl:812`, each file named once.

    Args:
        places: where the rows came from.
        most: name this many only, and count the rest.
    """
    shown = sorted(map(_split, places))[:most]
    files = [
        f"{file}:{', '.join(rest for _, _, rest in group)}" if file else ", ".join(rest for _, _, rest in group)
        for file, group in groupby(shown, key=lambda place: place[0])
    ]
    more = len(places) - len(shown)
    return "; ".join(files) + (f" and {more:,} more" if more else "")


def _split(place: str) -> tuple[str, int, str]:
    """The file, the line as a number, and all that follows the file; a place of another kind has no file."""
    file, colon, rest = place.rpartition(":")
    number = rest.split(" ")[0]
    return (file, int(number), rest) if colon and number.isdecimal() else ("", 0, place)
