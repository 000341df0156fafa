"""A table of tokenised rows that are kept."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gora.runtime.row_cache import Entry


def kept_rows_report(folder: Path, entries: Sequence[Entry], *, deleted: bool = False) -> RenderableType:
    """What is kept in a folder, or what was deleted there, with the sum of its sizes."""
    total = sum(entry.size for entry in entries)
    what = "deleted" if deleted else "kept"
    if not entries:
        return f"{folder}: no rows {'to delete' if deleted else 'are kept'}."
    table = Table("folder", "size", "rows", "last used", "made of")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.path.name, _size(entry.size), f"{entry.rows:,}", used, Text(entry.source, overflow="fold"))
    return Group(table, f"{what}      {_size(total)} in {len(entries):,} folders of {folder}")


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
