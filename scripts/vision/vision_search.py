"""What is known of the runs of the study, and which are needed next."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
AUTO = "gora auto"
"""GoRA as the preset has it, which finds its rate itself: known by the rate 0."""
Result = dict[str, Any]
Job = tuple[str, str, float, int]
"""Set, method, rate and seed of a run."""


class Results:
    """What is known of every run; kept in a file after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}

    @property
    def runs(self) -> list[Result]:
        """All of them."""
        runs: list[Result] = self.content["runs"]
        return runs

    def note(self, name: str, value: Any) -> None:
        """Keep something beside the runs."""
        self.content[name] = value

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.runs.append(result)
        self._path.write_text(json.dumps(self.content, indent=1))

    def has(self, job: Job) -> bool:
        """Whether it is known."""
        return any((run["set"], run["method"], run["rate"], run["seed"]) == job for run in self.runs)

    def losses(self, kind: str, method: str) -> dict[float, float]:
        """Loss on the rows held out by rate, on the first seed; infinite where a run has failed."""
        return {
            run["rate"]: run["loss"] if run.get("loss") is not None else math.inf
            for run in self.runs
            if (run["set"], run["method"], run["seed"]) == (kind, method, 0)
        }

    def best(self, kind: str, method: str) -> float | None:
        """The rate with the least of them; 0 for what finds its own."""
        if method == AUTO:
            return 0.0
        tried = self.losses(kind, method)
        return min(tried, key=tried.__getitem__) if tried else None

    def next(self, kind: str, method: str, given: argparse.Namespace) -> list[Job]:
        """The runs that are known to be needed for a method on a set, as far as results go."""
        if method != AUTO:
            tried = self.losses(kind, method)
            if missing := [rate for rate in given.rates if rate not in tried]:
                return [(kind, method, rate, 0) for rate in missing]
            best, places = self.best(kind, method), sorted(LADDER.index(rate) for rate in tried)
            beyond = {LADDER[places[0]]: places[0] - 1, LADDER[places[-1]]: places[-1] + 1}.get(best or 0.0, -1)
            if 0 <= beyond < len(LADDER):
                return [(kind, method, LADDER[beyond], 0)]
        jobs = [(kind, method, self.best(kind, method) or 0.0, seed) for seed in range(1, given.seeds + 1)]
        if method == AUTO:
            jobs += [(kind, method, rate, 1) for rate in given.around]
        return [job for job in jobs if not self.has(job)]
