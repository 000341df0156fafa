"""`gora check`: what a recipe will do and take here, and what would stop it, before anything is loaded or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gora.disk import size_text
from gora.errors import InputError
from gora.methods import METHODS
from gora.models.checkpoint_files import check_weights
from gora.models.load import empty_model, refuse_files_of_another_model
from gora.planning.budget import settle_rank
from gora.planning.facts import disk_facts, memory_facts, model_facts, pass_facts, peaks, row_facts, target_facts
from gora.planning.memory_advice import cheapest_changes
from gora.planning.sizes import settle_sizes
from gora.planning.time_probe import seconds_of_micro_batch
from gora.planning.workload import Workload, workload_of
from gora.recipe import accumulation_steps
from gora.recipe.derived import automatic
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.owner import refuse_what_cannot_be_taken
from gora.runs.state import Mode, find_progress, settle
from gora.runtime.console import output
from gora.runtime.gpu_comparison import compare_gpus, gpu_problems
from gora.runtime.machine import describe_machine
from gora.runtime.out_of_memory import is_out_of_memory, release_memory
from gora.training.engine_training import refuse_what_cannot_train
from gora.training.schedule import optimizer_steps, warmup_steps
from gora.training.trackers import refuse_what_cannot_be_watched

_MANY_CUT = 0.05


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found.

    Attributes:
        problems: what would stop the run, each with what to change.
        notes: what the user should know, and nothing stops.
        facts: everything else, as JSON says it; a section that a problem made impossible is missing.
        recipe: with every `auto` settled, where that was possible.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe

    @property
    def exit_code(self) -> int:
        """2 where a problem would stop the run."""
        return 2 if self.problems else 0

    def as_json(self) -> str:
        """All of it."""
        document = {"problems": self.problems, "notes": self.notes, **self.facts}
        return json.dumps(document | {"recipe": self.recipe.model_dump(mode="json")}, indent=2)


def check(
    recipe: Recipe,
    *,
    processes: int | None = None,
    mode: Mode | None = None,
    gpus: bool = False,
    merge_too: bool = False,
    trust_remote_code: bool = False,
) -> Checked:
    """Look at a recipe and at this machine.

    Args:
        recipe: the recipe.
        processes: of the run; None is one for each visible GPU.
        mode: what `gora run` is to do with its folder; None does not look whether it may.
        gpus: compare the GPUs with each other and measure how fast they talk.
        merge_too: whether the merged model will be written.
        trust_remote_code: let the model run Python code of its own.
    """
    look = _Look(processes or max(1, torch.cuda.device_count()), mode, merge_too)
    with output.collecting_warnings() as warnings:
        settled = look.at(recipe, trust_remote_code)
        if gpus:
            look.trying(lambda: look.compare_gpus())
    return Checked(problems=look.problems, notes=[*warnings, *look.notes], facts=look.facts, recipe=settled)


class _Look:
    """Goes through everything; what is refused becomes a problem, and the rest is looked at all the same."""

    def __init__(self, processes: int, mode: Mode | None, merge_too: bool) -> None:
        self._processes, self._mode, self._merge_too = processes, mode, merge_too
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {"machine": describe_machine(), "processes": processes}

    def trying(self, look: Callable[[], object]) -> bool:
        """Whether a look succeeded; a refusal is a problem."""
        try:
            look()
        except InputError as error:
            self.problems.append(str(error))
            return False
        return True

    def at(self, recipe: Recipe, trust_remote_code: bool) -> Recipe:
        """Everything about a recipe; returns it with every `auto` settled."""
        contexts: list[RunContext] = []

        def open_run() -> None:
            contexts.append(
                RunContext.looking(
                    recipe, processes=self._processes, mode=self._mode or "new", trust_remote_code=trust_remote_code
                )
            )

        if not self.trying(open_run):
            return recipe
        context = contexts[0]
        self.trying(lambda: self._folder(context))
        self.trying(lambda: refuse_what_cannot_train(context.engine, context.device, recipe.adapter.method))
        self.trying(lambda: refuse_what_cannot_be_watched(recipe, context.engine))
        divisible = self.trying(lambda: accumulation_steps(recipe.train, self._processes))
        if not (self.trying(lambda: context.inputs) and self.trying(lambda: context.chosen)):
            return recipe
        settled: list[RunContext] = []
        if not self.trying(lambda: settled.append(settle_rank(context))):
            return recipe
        context = settled[0]
        self.trying(lambda: self._weights(context))
        self.trying(lambda: self._ids(context))
        self._rows(context)
        works: list[Workload] = []
        if not self.trying(lambda: works.append(workload_of(context))):
            return context.recipe
        work = works[0]
        self._model(context, work)
        if divisible:
            if automatic(recipe):
                context = settle_sizes(context, find_progress(context.folder))
            self._steps(context)
            if self._memory(context, work):
                self._time(context)
        self._disk(context, work)
        return context.recipe

    def _folder(self, context: RunContext) -> None:
        refuse_what_cannot_be_taken(context.folder.path)
        progress = find_progress(context.folder)
        self.facts["folder"] = {"path": str(context.folder.path), "state": progress.state.name.lower()}
        if self._mode is not None:
            needs_plan = METHODS[context.recipe.adapter.method].needs_plan
            settle(context.folder, progress, "run", self._mode, needs_plan=needs_plan)

    def _weights(self, context: RunContext) -> None:
        place = Path(context.source.path)
        if place.is_dir():
            check_weights(context.recipe.model.name, place)
            refuse_files_of_another_model(context.recipe.model, context.source)

    def _ids(self, context: RunContext) -> None:
        """Whether the model knows all that its tokenizer makes of the rows; new tokens make room when it is loaded."""
        if context.inputs.of_text and not context.new_tokens:
            context.inputs.fit(empty_model(context.source))

    def _rows(self, context: RunContext) -> None:
        self.facts["rows"] = row_facts(context)
        counts = context.data.counts.train
        if context.data.stream:
            self.notes.append(
                f"The rows are a stream: all that is said of them is known of the first {len(context.data.train):,}. "
                "How many there are, how long the others are, and whether they can be used, shows in training."
            )
        if counts.truncated > _MANY_CUT * counts.used:
            self.notes.append(
                f"{counts.truncated / counts.used:.0%} of the training rows are cut at data.max_length "
                f"({context.recipe.data.max_length}). Raise it, or give data.overlong: drop."
            )

    def _model(self, context: RunContext, work: Workload) -> None:
        self.facts |= {"model": model_facts(context, work), "targets": target_facts(context, work)}
        self.notes += context.chosen.lines()
        if warning := context.chosen.warning():
            self.notes.append(warning)

    def _steps(self, context: RunContext) -> None:
        train, rows = context.recipe.train, context.data.per_epoch
        facts = pass_facts(context)
        steps = optimizer_steps(rows, train)
        self.facts["steps"] = {"optimizer_steps": steps, "warm_up": warmup_steps(train, steps), **facts}
        asked = facts["gradient_micro_batches"] * facts["gradient_micro_batch_size"]
        if rows is not None and asked > rows:
            self.notes.append(
                f"The gradient pass asks for {asked:,} rows and {rows:,} are there: some are used more than once."
            )

    def _memory(self, context: RunContext, work: Workload) -> bool:
        """Whether everything fits."""
        self.facts["memory"] = memory_facts(context, work)
        too_large = {stage: memory for stage, memory in peaks(context, work).items() if memory.total > work.limit}
        for stage, memory in too_large.items():
            what = "The gradient pass" if stage == "gradients" else "Training"
            changes = cheapest_changes(context, work, stage)
            headline = (
                f"{what} takes {size_text(memory.total)} by the estimate, and {size_text(work.limit)} of "
                f"{context.device} can be used. What to change, the cheapest first:"
            )
            self.problems.append("\n".join([headline, *(f"  - {change}" for change in changes)]))
        return not too_large

    def _time(self, context: RunContext) -> None:
        if context.device.type != "cuda":
            return
        try:
            seconds = seconds_of_micro_batch(context)
        except Exception as error:  # a model may refuse to be made smaller, or not fit
            release_memory()
            reason = "memory ran out" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            self.notes.append(f"The time could not be measured: {reason}.")
            return
        if seconds is None:
            return
        steps = self.facts["steps"]
        share = steps["gradient_micro_batch_size"] / steps["micro_batch_size"]
        self.facts["time"] = {
            "seconds_per_micro_batch": seconds,
            "gradients": seconds * share * steps["gradient_micro_batches"] / self._processes,
            "training": seconds * steps["accumulation"] * steps["optimizer_steps"],
        }

    def _disk(self, context: RunContext, work: Workload) -> None:
        disk = self.facts["disk"] = disk_facts(context, work)
        wanted = disk["certain"] + (disk["merged"] if self._merge_too else 0)
        if wanted > disk["free"]:
            self.problems.append(
                f"{size_text(wanted)} will be written to {disk['place']}, where {size_text(disk['free'])} are free. "
                "Free some, give another folder with --set output=FOLDER, or keep fewer checkpoints "
                "(train.keep_checkpoints)."
            )

    def compare_gpus(self) -> None:
        """Every visible GPU with every other."""
        count = torch.cuda.device_count()
        if not count:
            self.notes.append("There is no GPU to test.")
            return
        self.facts["gpus"] = compare_gpus([torch.device("cuda", index) for index in range(count)])
        self.problems += gpu_problems(self.facts["gpus"])
