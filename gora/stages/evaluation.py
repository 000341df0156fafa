"""Tasks for a trained model: what it can do, and what its base could."""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import peft
import torch
import transformers
from rich.table import Table

from gora import __version__
from gora.errors import InputError
from gora.evaluation.generate import Generator
from gora.evaluation.registry import task_named
from gora.evaluation.subject import Backend, LocalSubject, Shared
from gora.evaluation.task import Options, Scores, Task
from gora.files import publish, write_json
from gora.runtime.console import output
from gora.runtime.progress import clock
from gora.runtime.quiet import quiet_libraries
from gora.runtime.world import World, join
from gora.stages.subject import Loaded, Named, find_subject, load_subject

Which = Literal["trained", "base", "both"]
RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Job:
    """What to ask, and how.

    Attributes:
        tasks: each with its options; their `folder` is found when the work starts.
        which: the model as it was trained, its base, or both.
        batch_size: prompts at a time.
        trust_remote_code: let the model run Python code of its own.
    """

    tasks: Sequence[tuple[Task, Options]]
    which: Which = "trained"
    batch_size: int = 64
    trust_remote_code: bool = False


def evaluate(reference: str, job: Job, *, destination: Path | None = None) -> dict[str, dict[str, Scores]]:
    """Evaluate a run, an adapter or a model, and write figures and rows.

    Args:
        reference: a run folder, an adapter folder, or a model (folder or hub id).
        job: what to ask.
        destination: where `evaluation.json` and the folder `evaluation` go; None is the run's folder, or one in `runs`.

    Returns:
        Scores by task and side (`trained`, `base`), in process 0; nothing in the others.

    Raises:
        InputError: something that the user named cannot be used.
    """
    for task, options in job.tasks:
        task.check(options)
    named = find_subject(reference)
    world = join()
    if not world.main:
        output.mute()
    quiet_libraries()
    folder = destination or named.folder
    with output.logging_to(folder / "log.txt", "eval"):
        found: dict[str, dict[str, Scores]] = {}
        for part, sides in _parts(named, job.which):
            for side, name, scores in _ask(part, sides, job, folder, world):
                found.setdefault(name, {})[side] = scores
        if world.main:
            output.say(_table(found))
            output.say(f"results   {folder / RESULTS}, {folder / 'evaluation'}")
    return found


def task_jobs(names: Sequence[str], options: Options) -> list[tuple[Task, Options]]:
    """Tasks by name, each with the same options.

    Raises:
        InputError: there is no such task.
    """
    return [(task_named(name), options) for name in names]


def _parts(named: Named, which: Which) -> list[tuple[Named, list[str]]]:
    """What has to be loaded, and which sides it then answers for: a base with an adapter answers for both."""
    wanted: list[str] = ["base", "trained"] if which == "both" else [which]
    if named.adapter is not None:
        return [(named, wanted)]
    if "base" in wanted and named.base is None:
        raise InputError(f"--base: {named.name} is a model of its own; there is no base to compare it with.")
    sides = {"base": replace(named, model=named.base) if named.base else named, "trained": named}
    return [(sides[side], [side]) for side in wanted]


def _ask(named: Named, sides: Sequence[str], job: Job, folder: Path, world: World) -> list[tuple[str, str, Scores]]:
    loaded = load_subject(named, trust_remote_code=job.trust_remote_code)
    output.say(f"subject   {named.name}: {loaded.prompting.title}")
    backend: Backend = Generator(loaded.model, loaded.tokenizer, job.batch_size)
    shared = Shared(backend, world) if world.size > 1 else None
    if shared and not world.main:
        shared.serve()
        return []
    try:
        return [
            (side, task.name, _one(named, loaded, shared or backend, side, task, options, folder))
            for task, options in job.tasks
            for side in sides
        ]
    finally:
        if shared:
            shared.close()
        del loaded, backend
        gc.collect()


def _one(
    named: Named, loaded: Loaded, backend: Backend, side: str, task: Task, options: Options, folder: Path
) -> Scores:
    place = folder / "evaluation" / f"{task.name.replace('/', '-')}-{side}"
    place.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    subject = LocalSubject(loaded.prompting, backend, base=side == "base" and named.adapter is not None)
    scores = task.evaluate(subject, replace(options, folder=place))
    seconds = time.monotonic() - start
    figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
    output.say(f"{task.name:<9} {side}: {figures}; {len(scores.rows):,} rows in {clock(seconds)}")
    rows = place / "rows.jsonl"
    with publish(rows) as aside:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scores.rows), encoding="utf-8")
    facts = {
        "subject": named.name,
        "model": named.model.name,
        "adapter": None if subject.base or named.adapter is None else str(named.adapter),
        "form": loaded.prompting.title,
        "seed": options.seed,
        "limit": options.limit,
        **backend.facts,
        **scores.facts,
        "seconds": seconds,
        "rows": str(rows),
        "versions": _versions(),
    }
    _record(folder / RESULTS, task.name, side, {"metrics": scores.metrics, **facts})
    return scores


def _record(path: Path, task: str, side: str, result: Mapping[str, Any]) -> None:
    """Add a result to the file; what it says of other tasks and of training stays."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.setdefault("tasks", {}).setdefault(task, {})[side] = result
    write_json(path, content)


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "gora": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "device": device,
    }


def _table(found: Mapping[str, Mapping[str, Scores]]) -> Table:
    both = any(len(sides) > 1 for sides in found.values())
    columns = ("base", "trained", "difference") if both else tuple(next(iter(found.values())))
    table = Table("task", "metric", *columns, title="Evaluation", title_justify="left")
    for task, sides in found.items():
        for metric in next(iter(sides.values())).metrics:
            values = [scores.metrics[metric] for scores in sides.values()]
            cells = [f"{value:.4f}" for value in values] + ([f"{values[1] - values[0]:+.4f}"] if both else [])
            table.add_row(task, metric, *cells)
    return table
