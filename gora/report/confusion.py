"""A confusion matrix as a picture: rows are what images show, columns what they were taken for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gora.files import publish

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

_PAPER, _INK, _LINE = (255, 255, 255), (25, 25, 25), (215, 215, 215)
_DEEP = (33, 87, 158)
_MARGIN, _MOST_PIXELS = 12, 1400
_LARGEST_CELL, _NAMED_CELL, _COUNTED_CELL = 48, 11, 26
_LONGEST_NAME = 28


def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Write a PNG. The darker a cell, the greater its share of its row; names and counts stand where there is room.

    Args:
        counts: classes x classes.
        names: of the classes.
        path: the file.
    """
    from PIL import Image, ImageDraw, ImageFont

    cell = max(2, min(_LARGEST_CELL, _MOST_PIXELS // max(len(names), 1)))
    named, counted = cell >= _NAMED_CELL, cell >= _COUNTED_CELL
    font = ImageFont.load_default(size=min(14, max(9, cell - 2)))
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    room = max((round(font.getlength(name)) for name in shown), default=0) + 8 if named else 0
    left, side = _MARGIN + room, cell * len(names)
    top = _MARGIN + 22
    picture = Image.new("RGB", (max(left + side + _MARGIN, 260), top + side + room + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN - 4), "rows: what is shown; columns: what was seen", _INK, ImageFont.load_default(12))
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            box = (left + column * cell, top + row * cell, left + (column + 1) * cell, top + (row + 1) * cell)
            share = count / max(sum(values), 1)
            draw.rectangle(box, fill=_shade(share), outline=_LINE if cell > 6 else None)
            if counted and count:
                ink = _PAPER if share > 0.5 else _INK
                draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), f"{count}", ink, font, anchor="mm")
    if named:
        _name(picture, draw, shown, font, cell, left, top, side)
    with publish(path) as aside:
        picture.save(aside, "PNG")


def _name(
    picture: Any,
    draw: Any,
    names: Sequence[str],
    font: FreeTypeFont | ImageFont,
    cell: int,
    left: int,
    top: int,
    side: int,
) -> None:
    """Names beside the rows, and upright below the columns."""
    from PIL import Image, ImageDraw

    for number, name in enumerate(names):
        middle = number * cell + cell / 2
        draw.text((left - 4, top + middle), name, _INK, font, anchor="rm")
        strip = Image.new("RGB", (left - _MARGIN, cell), _PAPER)
        ImageDraw.Draw(strip).text((strip.width - 4, cell / 2), name, _INK, font, anchor="rm")
        picture.paste(strip.rotate(90, expand=True), (left + number * cell, top + side + 1))


def _shade(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(paper + share * (deep - paper)) for paper, deep in zip(_PAPER, _DEEP, strict=True))
    return red, green, blue
