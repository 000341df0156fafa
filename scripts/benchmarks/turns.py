"""Several trainings in one process that take their steps in turn, each in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from in_memory import finish
from transformers import TrainerCallback


class Turns:
    """Whose turn it is. In every round the order moves on by one, so that nobody always follows the same other.

    Args:
        names: who takes part.
        until: `time.perf_counter()` after which no round begins.
        told: is called at the end of every round.
    """

    def __init__(self, names: list[str], *, until: float, told: Callable[[], None]) -> None:
        self._names, self._until, self._told = names, until, told
        self._there, self._left = threading.Condition(), set[str]()
        self._round, self._order = 0, list(names)
        self.ended = False

    @contextmanager
    def taking_part(self, name: str, seconds: list[float], begin: Callable[[], None]) -> Iterator[Turn]:
        """Inside the block it is this one's turn, until it passes the turn on.

        Args:
            name: who.
            seconds: is given those of each turn.
            begin: makes things ready for it at the beginning of a turn.
        """
        turn = Turn(self, name, seconds, begin)
        turn.take()
        try:
            yield turn
        finally:
            with self._there:
                self._left.add(name)
                self._go_on()

    def wait_for(self, name: str) -> None:
        """Until it is the turn of this one."""
        with self._there:
            self._there.wait_for(lambda: self._order[0] == name)

    def pass_on(self) -> None:
        """It is the next one's turn."""
        with self._there:
            self._go_on()

    def _go_on(self) -> None:
        del self._order[0]
        self._order = [name for name in self._order if name not in self._left]
        if not self._order:
            self._told()
            self._round += 1
            self.ended = time.perf_counter() > self._until
            place = self._round % len(self._names)
            order = self._names[place:] + self._names[:place]
            self._order = [name for name in order if name not in self._left] or [""]
        self._there.notify_all()


class Turn:
    """The part of one in `Turns`."""

    def __init__(self, turns: Turns, name: str, seconds: list[float], begin: Callable[[], None]) -> None:
        self._turns, self._name, self._seconds, self._begin = turns, name, seconds, begin
        self._began = 0.0

    def take(self) -> None:
        """Wait for it, and begin."""
        self._turns.wait_for(self._name)
        self._begin()
        finish()
        self._began = time.perf_counter()

    def end(self) -> bool:
        """Note the time, let the others have theirs, and come back; whether all is to end."""
        finish()
        self._seconds.append(time.perf_counter() - self._began)
        self._turns.pass_on()
        self.take()
        return self._turns.ended


class InTurn(TrainerCallback):
    """Lets the others take a step after each step."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See the class."""
        if self._turn.end():
            control.should_training_stop = True
