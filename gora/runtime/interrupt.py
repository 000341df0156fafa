"""Ctrl-C and termination requests: long loops finish their step, everything else stops at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SAME_REQUEST = 1.0
"""Seconds within which a second signal is the same request, sent by a scheduler and by a launcher."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(BaseException):
    """A signal that asks the process to stop, raised where it arrives.

    Not a KeyboardInterrupt, which the command-line library would answer by itself.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"signal {number}")


class StopRequest:
    """Whether a signal has asked to stop."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Inside the block a signal raises StopSignal, so that `finally` clauses clean up."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise StopSignal(number)

    with _handling(handle):
        yield


@contextmanager
def stopping_between_steps() -> Iterator[StopRequest]:
    """Inside the block the first signal only sets a flag for the loop to look at; the second stops at once.

    One request can arrive twice, from a scheduler and from a launcher: what comes within a second is the same. So is
    every termination request after the process that started this one has gone: the kernel sends one for each thread
    that it ends there, which can take seconds where a GPU is let go.
    """
    request = StopRequest()
    asked, parent = 0.0, os.getppid()

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        orphaned = number == signal.SIGTERM and os.getppid() != parent
        if request and (orphaned or time.monotonic() - asked < SAME_REQUEST):
            return
        if request:
            raise StopSignal(number)
        request.number, asked = number, time.monotonic()
        if os.environ.get("RANK", "0") != "0":
            return
        # A signal may arrive in the middle of a print, whose streams must not be entered a second time.
        # Nobody may read it any more; what can be saved is saved all the same.
        with suppress(OSError):
            os.write(2, b"\nStopping after this step. A second signal stops at once, and loses what is not saved.\n")

    with _handling(handle):
        yield request


@contextmanager
def _handling(handler: object) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            signal.signal(number, handler)  # type: ignore[arg-type]
    except ValueError:
        # Only the main thread may set handlers; in another one signals go where they went before.
        before = {}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
