"""The questions of a task: the published set, or rows of the user's in the same columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.assets import resolve
from gora.data.messages import quoted
from gora.data.sources import read_rows
from gora.errors import InputError
from gora.evaluation.task import Options
from gora.recipe.schema import SourceSection


@dataclass(frozen=True)
class Questions:
    """Rows to ask about.

    Attributes:
        rows: where each came from, as in `test.jsonl:17`, and its columns.
        facts: source, number and fingerprint, for whoever repeats the evaluation.
    """

    rows: list[tuple[str, dict[str, Any]]]
    facts: dict[str, Any]


def read_questions(
    options: Options,
    published: str,
    *,
    columns: Sequence[str],
    subset: str | None = None,
    splits: tuple[str, ...] = ("test",),
) -> Questions:
    """Read the rows of a task.

    Args:
        options: `data` replaces the published set, `limit` takes the first rows.
        published: hub id of the set.
        columns: what every row must have.
        subset: configuration of the set, also looked for in a folder of the user's.
        splits: where the rows are, in order of preference.

    Raises:
        InputError: nothing can be read, or a row is damaged or lacks a column.
    """
    rows = read_rows(_source(options, published, subset), splits)
    if rows.bad:
        raise InputError(f"{rows.name}: rows that cannot be read.", [str(row) for row in rows.bad[:5]])
    kept = [(rows.where(index), row) for index, row in enumerate(rows.rows)]
    for where, row in kept:
        if missing := [column for column in columns if column not in row]:
            raise InputError(f"{where} has no column {quoted(missing)}; it has {quoted(row)}.")
    digest = hashlib.sha256("".join(json.dumps(row, sort_keys=True, default=str) for _, row in kept).encode())
    facts = {"data": options.data or published, "questions": len(kept), "data_sha256": digest.hexdigest()}
    return Questions(kept, facts)


def _source(options: Options, published: str, subset: str | None) -> SourceSection:
    path = options.data or published
    # A file has no subsets.
    is_file = Path(resolve(path, "data")).expanduser().is_file()
    return SourceSection(path=path, subset=None if is_file else subset, max_rows=options.limit)
