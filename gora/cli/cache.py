"""gora cache"""

from typing import Annotated

import typer


def cache_command(
    prune: Annotated[bool, typer.Option("--prune", help="Delete what is kept.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="With --prune: only what was not used for so long."),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--folder", help="Where rows are kept, if recipes say so (data.cache).")
    ] = None,
) -> None:
    """List or delete tokenized rows that are kept."""
    from gora.errors import InputError
    from gora.report.kept_rows import kept_rows_report
    from gora.runtime.console import output
    from gora.runtime.row_cache import entries, row_folder
    from gora.runtime.row_cache import prune as prune_rows

    if older_than is not None and not prune:
        raise InputError("--older-than says what --prune deletes: give both.")
    place = row_folder(folder)
    found = prune_rows(place, older_than or 0.0) if prune else entries(place)
    output.say(kept_rows_report(place, found, deleted=prune))
