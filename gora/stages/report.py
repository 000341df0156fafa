"""`gora report`: a run folder as one page for a browser."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from gora.adapters.serving import adapter_commands
from gora.errors import GoraError, InputError
from gora.files import parse_json, write_text
from gora.plan import Decision, Plan, read_plan
from gora.recipe import load_recorded
from gora.report.decisions import decisions_of
from gora.report.page import Figures, run_page
from gora.runs.decisions import read_decisions
from gora.runs.failure import read_failure
from gora.runs.folder import RunFolder
from gora.runs.results import read_results
from gora.runtime.console import output
from gora.runtime.world import World
from gora.training.metrics import read_metrics
from gora.training.samples import read_samples

_EXAMPLES = 4


def report(place: Path, destination: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        place: the run folder.
        destination: the page; None is `report.html` in the folder.

    Returns:
        The page.

    Raises:
        InputError: there is no run in the folder, or something of it cannot be read.
    """
    if not place.is_dir():
        raise InputError(f"{place} is not a folder. Give a run folder, such as runs/quickstart.")
    folder = RunFolder(place)
    if not (folder.recipe.exists() or folder.plan.exists() or folder.results.exists()):
        raise InputError(f"{place} holds no run: neither recipe.yaml nor plan.safetensors nor results.json is there.")
    page = destination or folder.page
    write_text(page, run_page(_figures(folder)))
    return page


def close_with_page(folder: RunFolder, world: World) -> None:
    """Write the page at the end of a command; one that cannot be written is said, and ends nothing."""
    if not world.main:
        return
    try:
        report(folder.path)
    except (GoraError, OSError) as error:
        output.warn(f"{folder.page} was not written: {error}")


def _figures(folder: RunFolder) -> Figures:
    plan = read_plan(folder.plan) if folder.plan.exists() else None
    failure = read_failure(folder)
    return Figures(
        name=folder.path.resolve().name,
        recipe=load_recorded(folder.recipe).model_dump(mode="json") if folder.recipe.exists() else {},
        plan=plan,
        decisions=_decisions(folder, plan),
        metrics=read_metrics(folder.metrics),
        results=read_results(folder),
        samples=read_samples(folder.samples),
        examples=_examples(folder),
        failure="" if failure is None else failure.message,
        files=_files(folder),
        commands=_commands(folder),
    )


def _decisions(folder: RunFolder, plan: Plan | None) -> dict[str, Decision]:
    return {**(decisions_of(plan) if plan is not None else {}), **read_decisions(folder)}


def _examples(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each task, with the answers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.evaluation.glob("*/rows.jsonl")):
        with open(file, encoding="utf-8", errors="replace") as stream:
            lines = [line for line, _ in zip(stream, range(_EXAMPLES), strict=False)]
        found[file.parent.name] = [row for line in lines if isinstance(row := _parsed(line), dict)]
    return found


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _files(folder: RunFolder) -> list[tuple[str, int]]:
    """Contents of the folder: files, and folders with their total size."""
    found = []
    for path in sorted(folder.path.iterdir()):
        if path.name.startswith(".") or path == folder.page:
            continue
        inside = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        found.append((path.name + ("/" if path.is_dir() else ""), sum(each.stat().st_size for each in inside)))
    return found


def _commands(folder: RunFolder) -> list[tuple[str, str]]:
    """What can be done with the run now."""
    place = quote(str(folder.path))
    if folder.trained is None:
        return [(f"gora run {quote(str(folder.recipe))} --resume", "continue the run")]
    commands = [(f"gora chat {place}", "talk with the result")]
    if folder.trained == folder.adapter:
        adapter = quote(str(folder.adapter))
        if not folder.merged.exists():
            commands.append((f"gora merge {adapter} --output {quote(str(folder.merged))}", "fold it into its base"))
        # An adapter that cannot be read can still be reported on.
        with suppress(GoraError):
            commands += [(command, "serve it") for command in adapter_commands(folder.adapter)]
    return commands
