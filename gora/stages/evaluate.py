"""Tasks for a trained model: what it can do, and what its base could."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gora.errors import InputError
from gora.evaluation.models.load import BackendName, load_subject
from gora.evaluation.models.locate import Named, find_subject
from gora.evaluation.models.subject import DistributedBackend, LocalSubject
from gora.evaluation.on_the_way import task_on_the_way
from gora.evaluation.registry import task_named
from gora.evaluation.task import Labelled, Options, Scores, Task
from gora.evaluation.tasks.glue import Glue
from gora.evaluation.tasks.harness import PREFIX, Foreign, check_place, second_opinion
from gora.evaluation.tasks.image import ImageTask
from gora.evaluation.tasks.loss import Loss
from gora.files import write_text
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import Recipe
from gora.report.scores import scores_table
from gora.runs.card import write_card
from gora.runs.folder import RunFolder
from gora.runs.owner import owning_together
from gora.runs.results import record_task, task_results, versions
from gora.runtime.console import output
from gora.runtime.progress import clock
from gora.runtime.quiet import quiet_libraries
from gora.runtime.world import World, join

Which = Literal["trained", "base", "both"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to ask, and how.

    Attributes:
        tasks: each with its options; their `folder` is found when the work starts.
        which: the model as it was trained, its base, or both.
        batch_size: prompts at a time.
        backend: what generates.
        trust_remote_code: let the model run Python code of its own.
    """

    tasks: Sequence[tuple[Task, Options]]
    which: Which = "trained"
    batch_size: int = 64
    backend: BackendName = "hf"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse what cannot work before anything long begins; raises InputError."""
        for task, options in self.tasks:
            task.check(options)


def evaluate(reference: str, job: Job, *, destination: Path | None = None) -> dict[str, dict[str, Scores]]:
    """Evaluate a run, an adapter or a model, and write figures and rows.

    Args:
        reference: a run folder, an adapter folder, or a model (folder or hub id).
        job: what to ask.
        destination: where `results.json` and the folder `evaluation` go; None is the run's folder, or one in `runs`.

    Returns:
        Scores by task and side (`trained`, `base`), in process 0; nothing in the others.

    Raises:
        InputError: something that the user named cannot be used.
    """
    job.check()
    named = find_subject(reference)
    world = join()
    check_place([task for task, _ in job.tasks], backend=job.backend, processes=world.size)
    if not world.main:
        output.mute()
    quiet_libraries()
    folder = RunFolder(destination) if destination else named.folder
    with owning_together(world, folder.path, command="gora eval", option="--output"):
        return _evaluate(named, job, folder, world)


def evaluate_in(folder: RunFolder, job: Job, world: World) -> dict[str, dict[str, Scores]]:
    """As `evaluate`, of a run that this command owns."""
    return _evaluate(find_subject(str(folder.path)), job, folder, world)


def _evaluate(named: Named, job: Job, folder: RunFolder, world: World) -> dict[str, dict[str, Scores]]:
    with output.logging_to(folder.log, "eval"):
        found: dict[str, dict[str, Scores]] = {}
        for part, sides in _parts(named, job.which):
            for side, name, scores in _ask(part, sides, job, folder, world):
                found.setdefault(name, {})[side] = scores
        if world.main:
            figures = {name: {side: scores.metrics for side, scores in sides.items()} for name, sides in found.items()}
            if any(scores.metrics for sides in found.values() for scores in sides.values()):
                output.say(scores_table(figures))
            output.say(f"results   {folder.results}, {folder.evaluation}")
            if named.run is not None and named.run.path == folder.path:
                write_card(folder)
    return found


def task_jobs(names: Sequence[str], options: Options, *, harness: bool = False) -> list[tuple[Task, Options]]:
    """Tasks by name, each with the same options.

    Args:
        names: what the user calls them; those that begin with `harness:` are lm-eval's own.
        options: what is said about them.
        harness: put each task of ours to the model through lm-eval as well.

    Raises:
        InputError: there is no such task, or lm-eval has no counterpart.
    """
    tasks: list[Task] = []
    for name in names:
        if name.startswith(PREFIX):
            tasks.append(Foreign(name.removeprefix(PREFIX)))
            continue
        task = task_named(name)
        tasks += [task, second_opinion(task)] if harness else [task]
    return [(task, options) for task in tasks]


def columns_named(named: Sequence[str]) -> dict[str, str]:
    """`answer=label` and so on, by what the column is for; raises InputError."""
    if wrong := [text for text in named if not all(text.partition("=")[::2])]:
        raise InputError(f"--column {wrong[0]}: say which column is what, such as answer=label.")
    return dict(text.split("=", 1) for text in named)


def closing_job(
    recipe: Recipe, *, allow_code_execution: bool, trust_remote_code: bool, allow_weak_sandbox: bool = False
) -> Job:
    """The tasks that a recipe closes with; raises InputError where one is not known or does not fit."""
    tasks: list[tuple[Task, Options]] = []
    for section in recipe.evaluation.tasks:
        options = Options(
            folder=Path(),
            data=section.path,
            limit=section.max_rows,
            seed=recipe.seed,
            max_new_tokens=section.max_new_tokens,
            columns=section.columns,
            allow_code_execution=allow_code_execution,
            allow_weak_sandbox=allow_weak_sandbox,
        )
        task = task_named(section.name)
        if recipe.model.head == "classification" and not isinstance(task, Glue | Loss):
            raise InputError(
                f"evaluation.tasks: {task.name} asks for text, which a model with a classification head does not write."
            )
        if reads_images(recipe.model.head) and not isinstance(task, ImageTask | Loss):
            raise InputError(
                f"evaluation.tasks: {task.name} is a task of text; a model with an image head has `image`."
            )
        tasks.append((Labelled(task, section.label) if section.label else task, options))
    names = [task.name for task, _ in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"evaluation.tasks: two are called {twice[0]}, as their results would be. Give one a `label`.")
    return Job(tasks=tasks, batch_size=recipe.evaluation.batch_size, trust_remote_code=trust_remote_code)


def deciding_task(recipe: Recipe) -> tuple[Task, Options] | None:
    """The closing task by whose figure the best evaluation is told; None where the evaluation loss decides.

    Raises:
        InputError: it cannot be asked during training.
    """
    if recipe.train.keep_by == "loss":
        return None
    job = closing_job(recipe, allow_code_execution=False, trust_remote_code=False)
    task, options = task_on_the_way(recipe, job.tasks)
    task.check(options)
    return task, options


def unfinished(job: Job, folder: RunFolder, world: World) -> Job:
    """What of a job an earlier run has not finished in this folder; the same in every process."""
    results = world.from_main(lambda: task_results(folder))
    done = [name for name, sides in results.items() if "trained" in sides]
    return replace(job, tasks=[(task, options) for task, options in job.tasks if task.name not in done])


def _parts(named: Named, which: Which) -> list[tuple[Named, list[str]]]:
    """What has to be loaded, and which sides it then answers for: a base with an adapter answers for both."""
    wanted: list[str] = ["base", "trained"] if which == "both" else [which]
    if named.adapter is not None:
        return [(named, wanted)]
    if "base" in wanted and named.base is None:
        raise InputError(f"--base: {named.name} is a model of its own; there is no base to compare it with.")
    sides = {"base": replace(named, model=named.base) if named.base else named, "trained": named}
    return [(sides[side], [side]) for side in wanted]


def _ask(
    named: Named, sides: Sequence[str], job: Job, folder: RunFolder, world: World
) -> list[tuple[str, str, Scores]]:
    _free()
    subject = load_subject(
        named, backend=job.backend, batch_size=job.batch_size, trust_remote_code=job.trust_remote_code
    )
    output.say(f"subject   {named.name}: {subject.prompting.title}")
    if world.size == 1:
        try:
            return _run_all(named, subject, sides, job, folder)
        finally:
            subject.close()
    shared = DistributedBackend(subject.backend, world)
    if not world.main:
        shared.serve()
        return []
    try:
        return _run_all(named, replace(subject, backend=shared), sides, job, folder)
    finally:
        shared.close()


def _run_all(
    named: Named, subject: LocalSubject, sides: Sequence[str], job: Job, folder: RunFolder
) -> list[tuple[str, str, Scores]]:
    found = []
    for task, options in job.tasks:
        for side in sides:
            # A model that was loaded as the base has no adapter to leave out.
            asked = replace(subject, base=side == "base" and named.adapter is not None)
            found.append((side, task.name, _one(named, asked, side, task, options, folder)))
    return found


def _one(named: Named, subject: LocalSubject, side: str, task: Task, options: Options, folder: RunFolder) -> Scores:
    place = folder.evaluation / f"{task.name.replace('/', '-')}-{side}"
    place.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    mine = replace(options, folder=place, model_name=named.name, model_fingerprint=subject.identity)
    scores = task.evaluate(subject, mine)
    seconds = time.monotonic() - start
    figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
    came_of_it = f"{figures}; " if figures else ""
    asked = scores.facts.get("questions", len(scores.rows))
    output.say(f"{task.name:<9} {side}: {came_of_it}{asked:,} rows in {clock(seconds)}")
    rows = place / "rows.jsonl"
    write_text(rows, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scores.rows))
    facts = {
        "subject": named.name,
        "model": named.model.name,
        "adapter": None if subject.base or named.adapter is None else str(named.adapter),
        "prompt_format": subject.prompting.title,
        "seed": options.seed,
        "limit": options.limit,
        **subject.backend.facts,
        **scores.facts,
        "seconds": seconds,
        "rows": str(rows),
        "versions": versions(),
    }
    record_task(folder, task.name, side, {"metrics": scores.metrics, **facts})
    return scores


def _free() -> None:
    """Give back the memory of a model that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
