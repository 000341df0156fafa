"""A rule finds settings that contradict each other; all of them are looked at together, see `rules`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gora.recipe.schema import Recipe


@dataclass(frozen=True)
class Contradiction:
    """Two or more settings that cannot all hold.

    Args:
        keys: the dotted keys concerned, the one to look at first in front.
        text: what is wrong and what to do.
    """

    keys: tuple[str, ...]
    text: str


Rule = Callable[[Recipe], Iterator[Contradiction]]
RULES: list[Rule] = []
"""All rules, in the order in which their modules are read."""


def rule(check: Rule) -> Rule:
    """Add a rule to all of them."""
    RULES.append(check)
    return check
