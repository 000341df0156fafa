"""Each label's own best value of a setting, chosen on one seed before the seeds that count are run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gora.comparison.table import Outcome
from gora.comparison.trials import Trial, axis_settings, without_section
from gora.comparison.tuning_table import Tuned
from gora.errors import InputError


@dataclass(frozen=True)
class Tuning:
    """What is tuned.

    Attributes:
        name: the setting without its section.
        values: as they were given.
        seed: of the runs that choose; none of the seeds that count.
    """

    name: str
    values: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, text: str, seeds: Sequence[int]) -> Tuning:
        """Of `section.key=v1,v2`.

        Raises:
            InputError: it is something else, or has one value only.
        """
        settings = axis_settings(text, "--tune")
        if len(settings) < 2:
            raise InputError(f"--tune {text}: two values are expected at least, as in train.learning_rate=3e-4,1e-3.")
        name = without_section(settings[0]).partition("=")[0]
        return cls(name, tuple(setting.partition("=")[2] for setting in settings), max(seeds) + 1)

    def choose(self, outcomes: Iterable[Outcome]) -> list[Tuned]:
        """What came of the runs that choose, by label."""
        by_label: dict[str, dict[str, Outcome]] = {}
        for outcome in outcomes:
            label, value = self._parts(outcome.label)
            by_label.setdefault(label, {})[value] = outcome
        return [Tuned.of(label, found) for label, found in by_label.items()]

    def chosen(self, tuned: Iterable[Tuned], trials: Iterable[Trial]) -> list[Trial]:
        """Of the runs at all values those that count: at the best value of their label, in the order of the labels."""
        place = {(each.label, each.best): number for number, each in enumerate(tuned)}
        best = [trial for trial in trials if self._parts(trial.label) in place]
        return sorted(best, key=lambda trial: place[self._parts(trial.label)])

    def _parts(self, label: str) -> tuple[str, str]:
        """The label without the value, and the value."""
        label, _, value = label.rpartition(f"{self.name}=")
        return label.strip() or "the recipe", value


def refuse_without_evaluation(trials: Iterable[Trial]) -> None:
    """End where there is no evaluation loss to choose by.

    Raises:
        InputError: a recipe evaluates on no rows.
    """
    if any(trial.recipe.data.eval is None and not trial.recipe.data.holdout for trial in trials):
        raise InputError("--tune chooses by evaluation loss: name rows (data.eval), or set some aside (data.holdout).")
