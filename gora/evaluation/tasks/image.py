"""Which class a model sees in images: accuracy over all and by class, and a picture of what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from gora.evaluation.task import Options, Recognised, Scores, Subject
from gora.report.confusion import draw_confusion
from gora.runtime.console import output

PICTURE = "confusion.png"
_WORST = 5


class ImageTask:
    """Images of the run's evaluation rows, or of `--data`, by the likeliest class."""

    name: ClassVar[str] = "image"

    def check(self, options: Options) -> None:
        """Which images there are depends on the subject."""

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask for every image; see `Task`."""
        seen = subject.recognise(options)
        shares = by_class(seen)
        right = sum(truth == found for truth, found in zip(seen.truth, seen.found, strict=True))
        metrics = {"accuracy": right / len(seen.truth), "mean class accuracy": sum(shares.values()) / len(shares)}
        worst = sorted(shares, key=shares.__getitem__)[:_WORST]
        output.say("classes   the least accurate: " + ", ".join(f"{name} {shares[name]:.1%}" for name in worst))
        picture = options.folder / PICTURE
        draw_confusion(confusion(seen), seen.names, picture)
        output.say(f"confusion {picture}")
        rows = [
            {"row": place, "label": seen.names[truth], "answer": seen.names[found], "correct": truth == found}
            for place, truth, found in zip(seen.places, seen.truth, seen.found, strict=True)
        ]
        facts = {
            "data": options.data or "the run's evaluation rows",
            "questions": len(rows),
            "accuracy_by_class": shares,
            "confusion": str(picture),
        }
        return Scores(metrics, rows, facts)


def by_class(seen: Recognised) -> dict[str, float]:
    """The share of each class's images that is recognised, by its name; classes without images are left out."""
    rows = confusion(seen)
    named = enumerate(zip(seen.names, rows, strict=True))
    return {name: row[number] / sum(row) for number, (name, row) in named if sum(row)}


def confusion(seen: Recognised) -> Sequence[Sequence[int]]:
    """How many images of each class (rows) were taken for each class (columns)."""
    counts = [[0] * len(seen.names) for _ in seen.names]
    for truth, found in zip(seen.truth, seen.found, strict=True):
        counts[truth][found] += 1
    return counts
