"""Waits for others in sight of the user: what is waited for, how long still, and a signal ends it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from gora.runtime.console import output

T = TypeVar("T")

PATIENCE = 900.0
"""Seconds that processes and hosts wait for each other at the start."""
_BEFORE_FIRST_LINE = 3.0
_BETWEEN_LINES = 30.0
_LOOK_EVERY = 0.2


class Wait:
    """Says every half minute what the block inside waits for, and how much time is left.

    Processes that are started together are a few seconds apart; nothing is said about those.

    Args:
        what: the line, `waiting for ...`; asked for each time; empty says nothing.
        seconds: after which the wait is over.
    """

    def __init__(self, what: Callable[[], str], seconds: float) -> None:
        self._what, self._end = what, time.monotonic() + seconds
        self._done = threading.Event()
        # The wait itself may be one of a library, which comes back when it is over only.
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> Wait:
        self._speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._speaker.join()

    @property
    def left(self) -> float:
        """Seconds until the wait is over, negative afterwards."""
        return self._end - time.monotonic()

    def pause(self) -> None:
        """Let a moment pass between two looks."""
        time.sleep(_LOOK_EVERY)

    def call(self, function: Callable[[], T]) -> T:
        """Call what blocks outside of Python, in a thread, so that this one hears signals.

        Raises:
            TimeoutError: the wait is over, and the call goes on in its thread.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:  # raised again below
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            if self.left < 0:
                raise TimeoutError
            thread.join(_LOOK_EVERY)
        if errors:
            raise errors[0]
        return results[0]

    def _speak(self) -> None:
        pause = _BEFORE_FIRST_LINE
        while not self._done.wait(pause):
            pause = _BETWEEN_LINES
            if line := self._what():
                output.say(f"{line}; {_minutes(self.left)} left")


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
