"""What a command does before its first training step, and for how long. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


class Phases:
    """Seconds by phase; those of a phase within another are not counted to it.

    Args:
        clock: seconds that have passed since any moment.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._since = clock, 0.0
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Count the time of the block; also a decorator."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def text(self) -> str:
        """Every phase so far, in the order in which they ended first."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())

    def _count(self) -> None:
        now = self._clock()
        if self._running:
            name = self._running[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


phases = Phases()
"""Those of this process."""
