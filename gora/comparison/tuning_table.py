"""The table of a tuned setting: evaluation loss of one seed by label and value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from gora.comparison.table import Outcome
from gora.runs.failure import Failure


@dataclass(frozen=True)
class Tuned:
    """What the values of a setting came to for one label.

    Attributes:
        label: what is compared.
        losses: evaluation loss by value, in the order in which the values were given; None where the run failed.
        reason: why the first of those failed that did, or None.
    """

    label: str
    losses: dict[str, float | None]
    reason: Failure | None

    @classmethod
    def of(cls, label: str, outcomes: Mapping[str, Outcome]) -> Tuned:
        """Of a label's runs by value."""
        losses = {value: each.result["loss"].get("final") if each.result else None for value, each in outcomes.items()}
        none = Failure(code="no-rows", message="no evaluation rows")
        reasons = [each.failure or none for value, each in outcomes.items() if losses[value] is None]
        return cls(label, losses, next(iter(reasons), None))

    @property
    def best(self) -> str | None:
        """The value with the least loss, or None if none worked."""
        worked = {value: loss for value, loss in self.losses.items() if loss is not None and math.isfinite(loss)}
        return min(worked, key=worked.__getitem__) if worked else None

    @property
    def at_an_end(self) -> bool:
        """Whether the best value is the least or the greatest that was tried, so that a better one may lie beyond."""
        try:
            order = sorted(self.losses, key=float)
        except ValueError:
            return False
        return self.best in (order[0], order[-1])

    def as_json(self) -> dict[str, Any]:
        """The row for a JSON file."""
        return {"label": self.label, "losses": self.losses, "best": self.best, "at_an_end": self.at_an_end}


def tuning_table(name: str, found: Sequence[Tuned]) -> Table:
    """For the terminal; a label's best is bold."""
    table = Table("method", *found[0].losses, "", title=f"{name}, one seed")
    for each in found:
        cells = [
            Text("failed" if loss is None else f"{loss:.4f}", "bold" if value == each.best else "")
            for value, loss in each.losses.items()
        ]
        note = "none worked" if each.best is None else "a better one may lie beyond" if each.at_an_end else ""
        table.add_row(each.label, *cells, note)
    return table
