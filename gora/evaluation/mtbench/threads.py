"""The same work on many things, several at a time, in threads that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Generator[Result, None, None]:
    """Results as they come, in any order; the first error is raised and ends the rest.

    Work that has begun when the iterator is closed goes on until the process ends, but nothing new begins. A pool of
    the standard library would wait for it instead, and with it for a slow endpoint after Ctrl-C.

    Args:
        work: what is done to each item, in any of the threads.
        items: what it is done to.
        threads: how many at a time.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Result] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = work(item)
            except BaseException as error:
                # Nothing new begins after an error, not even in the moment until it is noticed.
                stop.set()
                done.put(error)
                return
            done.put((result,))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome[0]
    finally:
        stop.set()
