"""The runs of a comparison: every combination of methods, variants, settings and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.methods import METHODS
from gora.recipe import load_recipe, load_recorded
from gora.recipe.derived import by_key
from gora.recipe.schema import Recipe
from gora.recipe.variants import Variant
from gora.runs.decisions import ASKED, as_asked
from gora.runs.folder import RunFolder
from gora.runs.results import task_results
from gora.runs.state import Progress, RunState, find_progress

_AS_IT_IS = Variant("", (), "")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a comparison.

    Attributes:
        label: what is compared: the method, the variant and the varied settings.
        seed: the seed.
        overrides: what `gora run` is told beside the recipe.
        recipe: the resolved recipe.
        folder: its run folder.
    """

    label: str
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe
    folder: RunFolder

    def as_json(self) -> dict[str, Any]:
        """Which run it is, for programs that look for its results."""
        return {"label": self.label, "seed": self.seed, "folder": self.folder.path.name}

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return find_progress(self.folder)

    @property
    def finished(self) -> bool:
        """Whether an earlier comparison has run it to the end, its tasks included."""
        if self.progress.state != RunState.FINISHED:
            return False
        done = task_results(self.folder)
        return all((task.label or task.name) in done for task in self.recipe.evaluation.tasks)


def make_trials(
    reference: str,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    variants: Sequence[Variant],
    vary: Sequence[str],
    seeds: Sequence[int],
    destination: Path,
) -> list[Trial]:
    """Every combination as a run with a folder of its own; see `compare` for the arguments.

    Raises:
        InputError: a combination is no valid recipe, two have one name, or a folder holds a run of other settings.
    """
    _refuse_twice(vary)
    combinations = list(itertools.product(*(axis_settings(text, "--vary") for text in vary)))
    trials = []
    for method, variant in itertools.product(_methods(methods, variants) or [""], variants or [_AS_IT_IS]):
        chosen = [f"adapter.method={method}"] if method else []
        for settings in combinations:
            varied = [without_section(setting) for setting in settings]
            label = " ".join(filter(None, [method, variant.label, *varied]))
            for seed in seeds:
                folder = destination / "runs" / re.sub(r"[^\w.+=-]+", "_", f"{label} seed={seed}")
                mine = (*overrides, *chosen, *variant.settings, *settings, f"seed={seed}", f"output={folder}")
                trials.append(
                    Trial(
                        label=label,
                        seed=seed,
                        overrides=mine,
                        recipe=_load(reference, mine, variant),
                        folder=RunFolder.of(str(folder)),
                    )
                )
    _refuse_same_folder(trials)
    for trial in trials:
        _refuse_other_run(trial)
    return trials


def _methods(wanted: Sequence[str], variants: Sequence[Variant]) -> list[str]:
    if list(wanted) == ["all"]:
        wanted = list(METHODS)
    if unknown := [name for name in wanted if name not in METHODS]:
        raise InputError(f"--methods: {', '.join(unknown)} must be one of {', '.join(METHODS)}.")
    own = [variant for variant in variants if any(text.startswith("adapter.method=") for text in variant.settings)]
    if wanted and own:
        raise InputError(f"--methods: {own[0].place} names a method of its own. Leave --methods out.")
    return list(wanted)


def _refuse_twice(vary: Sequence[str]) -> None:
    keys = [text.partition("=")[0] for text in vary]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise InputError(f"{', '.join(twice)} is varied twice. Give all its values at once, as in {twice[0]}=v1,v2,v3.")


def without_section(setting: str) -> str:
    """`learning_rate=0.001` of `train.learning_rate=0.001`."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def axis_settings(text: str, option: str) -> list[str]:
    """`section.key=v1` and `section.key=v2` of `section.key=v1,v2`, which an option of the command line gives.

    Raises:
        InputError: it is something else.
    """
    key, equals, values = text.partition("=")
    if not equals or not all(values.split(",")):
        raise InputError(f"{option} {text}: section.key=v1,v2 is expected, as in train.learning_rate=1e-4,5e-4.")
    return [f"{key}={value}" for value in values.split(",")]


def _load(reference: str, overrides: tuple[str, ...], variant: Variant) -> Recipe:
    try:
        return load_recipe(reference, overrides).recipe
    except InputError as error:
        if not any(setting in problem for setting in variant.settings for problem in error.problems):
            raise
        raise InputError(f"{variant.place} does not go with {error.headline}", error.problems) from None


def _refuse_same_folder(trials: Sequence[Trial]) -> None:
    labels: dict[Path, str] = {}
    for trial in trials:
        if trial.folder.path in labels:
            both = f"{labels[trial.folder.path]!r} and {trial.label!r}"
            raise InputError(f"Two runs have one folder, {trial.folder.path}: {both} with seed {trial.seed}.")
        labels[trial.folder.path] = trial.label


def _refuse_other_run(trial: Trial) -> None:
    path = trial.folder.recipe
    if not path.exists():
        return
    # Where the folder lies does not count: it may have been copied from another machine.
    try:
        begun = load_recorded(path)
    except InputError as error:
        what = f"{trial.folder.path} holds a run whose recipe cannot be read. Delete it, or give another --output."
        raise InputError(what, error.problems or (error.headline,)) from None
    asked, wanted = as_asked(trial.folder, begun), by_key(trial.recipe)
    if any(asked.get(key) not in (value, ASKED) for key, value in wanted.items() if key != "output"):
        raise InputError(f"{trial.folder.path} holds a run of other settings. Delete it, or give another --output.")
