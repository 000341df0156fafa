"""The questions of a task: the published set, or rows of the user's in the same columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.assets import resolve
from gora.data.hub import holds_subsets
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


def read_own(options: Options, task: str, known: Mapping[str, str]) -> tuple[Questions, dict[str, str]]:
    """Rows of the user's for a task that has no set of its own, and the names of their columns.

    Args:
        options: `data` and `columns`.
        task: what the user calls it.
        known: the columns that the task reads, and what they are called unless the options say otherwise; "" is what
            the subject was trained on.

    Raises:
        InputError: there are no rows, they cannot be read, or a column is named that the task does not read.
    """
    if options.data is None:
        raise InputError(f"--task {task} has no questions of its own: name rows with --data (`path` in a recipe).")
    if unknown := sorted(options.columns.keys() - known.keys()):
        asked = ", ".join(known)
        raise InputError(f"--column {unknown[0]}=...: {task} reads no such column. Known: {asked}.")
    questions = read_questions(options, options.data, columns=list(options.columns.values()))
    if not questions.rows:
        raise InputError(f"--data {options.data}: there are no rows.")
    return questions, {**known, **options.columns}


def _source(options: Options, published: str, subset: str | None) -> SourceSection:
    path = options.data or published
    place = Path(resolve(path, "data")).expanduser()
    # Neither a file nor the folder of the subset itself has subsets.
    is_one_set = place.is_file() or (place.is_dir() and not holds_subsets(place))
    return SourceSection(path=path, subset=None if is_one_set else subset, max_rows=options.limit)
