"""The same recipe with several methods, seeds and settings, each in a process and a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gora.comparison.processes import Command, run_commands
from gora.comparison.shared_pass import SharedPass, shared_passes
from gora.comparison.table import Outcome, comparison_table, markdown, plot_curves, summarize
from gora.comparison.trials import Trial, make_trials
from gora.comparison.tuning import Tuning, refuse_without_evaluation
from gora.comparison.tuning_table import tuning_table
from gora.errors import InputError
from gora.files import write_json, write_text
from gora.recipe.variants import Variants, read_variants
from gora.runtime.console import output


def compare(
    reference: str,
    overrides: Sequence[str],
    *,
    methods: Sequence[str] = (),
    seeds: Sequence[int],
    vary: Sequence[str] = (),
    tune: str | None = None,
    variants: str | None = None,
    jobs: int = 1,
    destination: Path,
) -> list[Outcome]:
    """Run every combination that is not finished, then write table, figures and curves to the destination.

    Args:
        reference: the recipe, as `gora run` takes it.
        overrides: settings that all runs share.
        methods: values of `adapter.method`; `all` is every one, none is the recipe's own.
        seeds: values of `seed`.
        vary: `section.key=v1,v2`; all combinations are run.
        tune: `section.key=v1,v2`; every combination gets its own best value, by evaluation loss on one more seed.
        variants: a file of named variants, or the name of a built-in comparison.
        jobs: runs at a time on each device.
        destination: a folder for the runs and the results.

    Raises:
        InputError: there is nothing to compare, a combination is no valid recipe, or a folder holds a run of other
            settings.
    """
    if not methods and not vary and tune is None and variants is None:
        raise InputError("There is nothing to compare. Give --methods, --variants, --vary or --tune.")
    wanted = read_variants(variants) if variants is not None else Variants(())

    def make(overrides: Sequence[str], axes: Sequence[str], seeds: Sequence[int], folder: Path) -> list[Trial]:
        return make_trials(
            reference,
            overrides,
            methods=methods,
            variants=wanted.variants,
            vary=axes,
            seeds=seeds,
            destination=folder,
        )

    def run(trials: Sequence[Trial], folder: Path) -> list[Outcome]:
        passes = shared_passes(trials, folder) if wanted.share_gradients else []
        failures = _run_what_is_open(reference, trials, passes, jobs)
        return [_outcome(trial, failures) for trial in trials]

    if tune is None:
        outcomes = run(make(overrides, vary, seeds, destination), destination)
    else:
        tuning, folder = Tuning.of(tune, seeds), destination / "tuning"
        trials = make(overrides, [*vary, tune], seeds, destination)
        # Tasks are not looked at when values are chosen.
        searched = make((*overrides, "evaluation.tasks=[]"), [*vary, tune], [tuning.seed], folder)
        refuse_without_evaluation(searched)
        output.say(f"tune      {tuning.name}: {', '.join(tuning.values)}, by evaluation loss on seed {tuning.seed}")
        tuned = tuning.choose(run(searched, folder))
        output.say(tuning_table(tuning.name, tuned))
        write_json(destination / "tuning.json", [each.as_json() for each in tuned])
        outcomes = run(tuning.chosen(tuned, trials), destination)
        outcomes += [
            Outcome(label=each.label, seed=tuning.seed, failure=each.reason, result={}, curve=[])
            for each in tuned
            if each.best is None
        ]
    _publish(outcomes, destination)
    return outcomes


def _run_what_is_open(
    reference: str, trials: Sequence[Trial], passes: Sequence[SharedPass], jobs: int
) -> dict[Path, str]:
    """Collect the shared gradients, then run what is not finished; returns why those that failed did."""
    unfinished = [trial for trial in trials if not trial.finished]
    count = "1 run" if len(trials) == 1 else f"{len(trials)} runs"
    output.say(f"compare   {count}, {len(trials) - len(unfinished)} of them finished before")
    needed = [shared for shared in passes if shared.needed]
    if needed:
        passes_needed = "1 pass" if len(needed) == 1 else f"{len(needed)} passes"
        output.say(f"gradients {passes_needed} for {sum(len(shared.trials) for shared in needed)} runs")
    failures = run_commands("passes", [_pass_run_command(reference, shared) for shared in needed], jobs)
    for shared in needed:
        if reason := failures.pop(shared.folder.path, None):
            failures |= {trial.folder.path: f"its gradient pass failed: {reason}" for trial in shared.trials}
    shared_by = {trial.folder.path: shared for shared in passes for trial in shared.trials}
    ready = [trial for trial in unfinished if trial.folder.path not in failures]
    failures |= run_commands(
        "runs", [_run_command(reference, trial, shared_by.get(trial.folder.path)) for trial in ready], jobs
    )
    for shared in passes:
        if shared.drop_if_done():
            output.say(f"gradients {shared.folder.gradients} is deleted: every run that starts from it is finished")
    return failures


def _run_command(reference: str, trial: Trial, shared: SharedPass | None) -> Command:
    folder = trial.folder
    begun = folder.plan.exists() or folder.newest_checkpoint() is not None or folder.trained is not None
    kept = ("--from-gradients", str(shared.folder.gradients)) if shared else ()
    how = "--resume" if begun else "--overwrite"
    return Command(
        label=trial.label, folder=trial.folder, arguments=("run", reference, *_set(trial.overrides), how, *kept)
    )


def _pass_run_command(reference: str, shared: SharedPass) -> Command:
    how = "--resume" if shared.folder.pass_checkpoint.exists() and not shared.folder.plan.exists() else "--overwrite"
    arguments = ("precompute", reference, *_set(shared.overrides), "--keep-gradients", "fp32", how)
    return Command(label=f"seed {shared.trials[0].seed}", folder=shared.folder, arguments=arguments)


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for setting in overrides for part in ("--set", setting)]


def _outcome(trial: Trial, failures: dict[Path, str]) -> Outcome:
    if not trial.finished:
        return Outcome(
            label=trial.label,
            seed=trial.seed,
            failure=failures.get(trial.folder.path, "it was not run"),
            result={},
            curve=[],
        )
    result: dict[str, Any] = json.loads(trial.folder.evaluation.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in trial.folder.metrics.read_text(encoding="utf-8").splitlines()]
    return Outcome(
        label=trial.label,
        seed=trial.seed,
        failure=None,
        result=result,
        curve=[(line["step"], line["loss"]) for line in lines if "loss" in line],
    )


def _publish(outcomes: list[Outcome], destination: Path) -> None:
    rows = summarize(outcomes)
    output.say(comparison_table(rows))
    write_text(destination / "comparison.md", markdown(rows))
    write_json(destination / "comparison.json", [row.as_json() for row in rows])
    made = ["comparison.md", "comparison.json"]
    if plot_curves(outcomes, destination / "comparison.png"):
        made.append("comparison.png")
    output.say(f"results   {', '.join(str(destination / name) for name in made)}")
