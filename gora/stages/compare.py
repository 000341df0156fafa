"""The same recipe with several methods, seeds and settings, each in a process and a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from gora.recipe import LoadedRecipe
from gora.recipe.variants import Variants, read_variants
from gora.runs.failure import Failure
from gora.runs.owner import owning
from gora.runs.results import results_of_finished
from gora.runs.state import RunState
from gora.runtime.console import output
from gora.training.metrics import read_metrics


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
    with owning(destination, command="gora compare", option="--output"):
        return _compare(
            reference,
            overrides,
            methods=methods,
            seeds=seeds,
            vary=vary,
            tune=tune,
            variants=variants,
            jobs=jobs,
            destination=destination,
        )


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 where every run worked, 2 where every run was refused, else 1."""
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if not failures:
        return 0
    refused = all(failure.exit_code == InputError.exit_code for failure in failures)
    return 2 if refused and len(failures) == len(outcomes) else 1


def destination_of(loaded: LoadedRecipe, overrides: Sequence[str], given: Path | None) -> Path:
    """Where a comparison goes: `--output`, else an overridden `output`, else a folder in `runs`.

    Raises:
        InputError: the two name different folders.
    """
    overridden = any(setting.partition("=")[0].strip() == "output" for setting in overrides)
    named = Path(loaded.recipe.output) if overridden and loaded.recipe.output else None
    if given and named and given != named:
        raise InputError(f"--output {given} and --set output={named} name different folders: give one of the two.")
    return given or named or Path(f"runs/compare-{loaded.name}")


def _compare(
    reference: str,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    vary: Sequence[str],
    tune: str | None,
    variants: str | None,
    jobs: int,
    destination: Path,
) -> list[Outcome]:
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
        write_json(folder / "runs.json", [trial.as_json() for trial in trials])
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
) -> dict[Path, Failure]:
    """Collect the shared gradients, then run what is not finished; returns why those that failed did."""
    unfinished = [trial for trial in trials if not trial.finished]
    count = "1 run" if len(trials) == 1 else f"{len(trials)} runs"
    output.say(f"compare   {count}, {len(trials) - len(unfinished)} of them finished before")
    needed = [shared for shared in passes if shared.needed]
    if needed:
        passes_needed = "1 pass" if len(needed) == 1 else f"{len(needed)} passes"
        output.say(f"gradients {passes_needed} for {sum(len(shared.trials) for shared in needed)} runs")
    failures = run_commands("passes", [_pass_command(reference, shared) for shared in needed], jobs)
    for shared in needed:
        if failure := failures.pop(shared.folder.path, None):
            of_pass = replace(failure, message=f"its gradient pass failed: {failure.message}")
            failures |= {trial.folder.path: of_pass for trial in shared.trials}
    shared_by = {trial.folder.path: shared for shared in passes for trial in shared.trials}
    ready = [trial for trial in unfinished if trial.folder.path not in failures]
    commands = [_run_command(reference, trial, shared_by.get(trial.folder.path)) for trial in ready]
    failures |= run_commands("runs", commands, jobs)
    for shared in passes:
        if shared.drop_if_done():
            output.say(f"gradients {shared.folder.gradients} is deleted: every run that starts from it is finished")
    return failures


def _run_command(reference: str, trial: Trial, shared: SharedPass | None) -> Command:
    kept = ("--from-gradients", str(shared.folder.gradients)) if shared else ()
    # A run that has not begun starts at its beginning: nothing of a comparison is ever replaced.
    arguments = ("run", reference, *_set(trial.overrides), "--resume", *kept)
    return Command(label=trial.label, folder=trial.folder, arguments=arguments)


def _pass_command(reference: str, shared: SharedPass) -> Command:
    # A plan without gradients, which were deleted or damaged, is of no use here.
    mode = "--resume" if shared.progress.state < RunState.PLANNED else "--overwrite"
    arguments = ("precompute", reference, *_set(shared.overrides), "--keep-gradients", "fp32", mode)
    return Command(label=f"seed {shared.trials[0].seed}", folder=shared.folder, arguments=arguments)


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for setting in overrides for part in ("--set", setting)]


def _outcome(trial: Trial, failures: dict[Path, Failure]) -> Outcome:
    if not trial.finished:
        failure = failures.get(trial.folder.path) or Failure(code="not-run", message="it was not run")
        return Outcome(label=trial.label, seed=trial.seed, failure=failure, result={}, curve=[])
    return Outcome(
        label=trial.label,
        seed=trial.seed,
        failure=None,
        result=results_of_finished(trial.folder),
        curve=[(line["step"], line["loss"]) for line in read_metrics(trial.folder.metrics) if _is_point(line)],
    )


def _is_point(line: Mapping[str, Any]) -> bool:
    """NaN and infinity are text in a metrics file, and have no place in a plot."""
    return isinstance(line.get("loss"), int | float)


def _publish(outcomes: list[Outcome], destination: Path) -> None:
    rows = summarize(outcomes)
    output.say(comparison_table(rows))
    write_text(destination / "comparison.md", markdown(rows))
    write_json(destination / "comparison.json", [row.as_json() for row in rows])
    made = ["comparison.md", "comparison.json"]
    if plot_curves(outcomes, destination / "comparison.png"):
        made.append("comparison.png")
    output.say(f"results   {', '.join(str(destination / name) for name in made)}")
    if failed := [outcome for outcome in outcomes if outcome.failure is not None]:
        output.warn(f"{len(failed)} of {len(outcomes)} runs failed; the table says why.")
