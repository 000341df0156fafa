"""Figures of classification as GLUE defines them (Wang et al., arXiv 1804.07461)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Label = int | None
"""Number of a class; None, an answer that is none of them, is always wrong."""


def accuracy(predicted: Sequence[Label], gold: Sequence[int]) -> float:
    """Share of rows whose label is right."""
    return sum(p == g for p, g in zip(predicted, gold, strict=True)) / len(gold)


def f1(predicted: Sequence[Label], gold: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither is defined."""
    both = sum(p == 1 and g == 1 for p, g in zip(predicted, gold, strict=True))
    return 2 * both / max(1, sum(p == 1 for p in predicted) + sum(g == 1 for g in gold))


def matthews(predicted: Sequence[Label], gold: Sequence[int]) -> float:
    """Matthews' correlation for any number of classes, from -1 to 1; 0 where one side has a single class.

    The form of Gorodkin (2004): an answer that is no class is a class of its own on the predicted side.
    """
    total = len(gold)
    right = sum(p == g for p, g in zip(predicted, gold, strict=True))
    classes = {*predicted, *gold}
    counts = [(list(predicted).count(one), list(gold).count(one)) for one in classes]  # type: ignore[arg-type]
    covariance = right * total - sum(p * g for p, g in counts)
    spread_predicted = total**2 - sum(p * p for p, _ in counts)
    spread_gold = total**2 - sum(g * g for _, g in counts)
    spread = math.sqrt(spread_predicted * spread_gold)
    return covariance / spread if spread else 0.0
