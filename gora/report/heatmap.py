"""A heat map of ranks on the terminal: numbers that need no colour, on a background that shows the scale."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from gora.report.grid import Grid
from gora.report.palette import VIRIDIS, ink_on

_ROWS_PER_HEADER = 40
_SWATCHES = 5


@dataclass(frozen=True)
class _Column:
    number: int
    parent: str
    leaf: str
    width: int


class HeatMap:
    """Rows of blocks by columns of kinds; folds into several tables below one another where the terminal is narrow.

    Args:
        grid: where each module stands.
        ranks: rank of each module.
    """

    def __init__(self, grid: Grid, ranks: Mapping[str, int]) -> None:
        self._grid = grid
        self._cells = {place: ranks[name] for name, place in grid.places.items()}
        present = [rank for rank in ranks.values() if rank > 0]
        self._low, self._high = (min(present), max(present)) if present else (0, 0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = max((len(row.label) for row in self._grid.rows), default=0) + 1
        dot = "." if options.ascii_only else "·"
        yield self._legend(dot, in_colour=console.color_system is not None and not console.no_color)
        for panel in _fold(self._columns(), max(options.max_width - margin, 1)):
            yield Text()
            shown = {column.number for column in panel}
            filled = sorted({row for row, column in self._cells if column in shown})
            for rows in _chunks(filled):
                yield from self._header(panel, margin)
                for row in rows:
                    yield self._line(row, panel, margin, dot)

    def _columns(self) -> list[_Column]:
        digits = len(str(self._high))
        columns = []
        for number, label in enumerate(self._grid.columns):
            parent, _, leaf = label.rpartition(".")
            columns.append(_Column(number, parent, leaf, max(len(leaf), digits) + 2))
        return columns

    def _header(self, panel: Sequence[_Column], margin: int) -> Iterator[Text]:
        above, below = Text(" " * margin), Text(" " * margin)
        for parent, family in _families(panel):
            above.append_text(_fitted(parent, _total(family), "dim"))
            for column in family:
                below.append_text(_fitted(column.leaf, column.width, "bold"))
        if above.plain.strip():
            yield _line(above)
        yield _line(below)

    def _line(self, row: int, panel: Sequence[_Column], margin: int, dot: str) -> Text:
        line = Text().append(self._grid.rows[row].label.rjust(margin - 1) + " ", "dim")
        for column in panel:
            rank = self._cells.get((row, column.number))
            # Right-aligned numbers in the middle of the cell, so that 4 and 32 end below one another.
            text = "" if rank is None else (str(rank) if rank else dot).rjust(len(str(self._high)))
            line.append_text(_fitted(text, column.width, self._style(rank) if rank else "dim"))
        return _line(line)

    def _legend(self, dot: str, *, in_colour: bool) -> Text:
        legend = Text("ranks ")
        if in_colour and self._low < self._high:
            steps = [self._low * (self._high / self._low) ** (step / (_SWATCHES - 1)) for step in range(_SWATCHES)]
            for rank in sorted({round(step) for step in steps}):
                legend.append(f" {rank} ", self._style(rank))
        else:
            legend.append(f"{self._low} to {self._high}" if self._low < self._high else str(self._high))
        if 0 in self._cells.values():
            legend.append(f"   {dot} no adapter", "dim")
        return legend

    def _style(self, rank: int) -> Style:
        # Logarithmic, since ranks compare as multiples: one outlier must not make all others look alike.
        return _background(
            math.log(rank / self._low) / math.log(self._high / self._low) if self._low < self._high else 0.5
        )


def _background(share: float) -> Style:
    """Background between the first and the last colour, with letters that stand out."""
    position = share * (len(VIRIDIS) - 1)
    before = min(int(position), len(VIRIDIS) - 2)
    ends = [Color.parse(VIRIDIS[number]).get_truecolor() for number in (before, before + 1)]
    rgb = [low + (high - low) * (position - before) for low, high in zip(*ends, strict=True)]
    return Style(color=ink_on(*(part / 255 for part in rgb)), bgcolor=Color.from_rgb(*rgb))


def _fold(columns: Sequence[_Column], room: int) -> Iterator[list[_Column]]:
    """Columns in as many panels as the room asks for; columns of one parent stay together where they can."""
    panel: list[_Column] = []
    for _, family in _families(columns):
        for piece in _pieces(family, room):
            if panel and _total([*panel, *piece]) > room:
                yield panel
                panel = []
            panel += piece
    if panel:
        yield panel


def _families(columns: Sequence[_Column]) -> Iterator[tuple[str, list[_Column]]]:
    """Neighbours below one parent; a column without one stands alone."""
    for _, family in groupby(columns, key=lambda column: column.parent or column.number):
        members = list(family)
        yield members[0].parent, members


def _pieces(family: list[_Column], room: int) -> Iterator[list[_Column]]:
    """A family, cut where it is wider than the room, each column as wide as the parent above the piece asks for."""
    piece: list[_Column] = []
    for column in family:
        if piece and _total([*piece, column]) > room:
            yield _widened(piece, room)
            piece = []
        piece.append(column)
    yield _widened(piece, room)


def _widened(piece: list[_Column], room: int) -> list[_Column]:
    missing = max(0, min(len(piece[0].parent) + 2, room) - _total(piece))
    share, rest = divmod(missing, len(piece))
    widths = [column.width + share + (number < rest) for number, column in enumerate(piece)]
    return [_Column(c.number, c.parent, c.leaf, min(width, room)) for c, width in zip(piece, widths, strict=True)]


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns)


def _chunks(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Even runs of rows that each get a header, so that it stays in sight in a deep model."""
    count = -(-len(rows) // _ROWS_PER_HEADER)
    for number in range(count):
        yield rows[number * len(rows) // count : (number + 1) * len(rows) // count]


def _fitted(content: str, width: int, style: Style | str) -> Text:
    text = Text(content, style)
    text.truncate(width - (width > len(content)), overflow="ellipsis")
    text.align("center", width)
    return text


def _line(text: Text) -> Text:
    text.no_wrap = True
    text.overflow = "crop"
    return text
