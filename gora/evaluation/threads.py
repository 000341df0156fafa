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
    done: queue.SimpleQueue[Callable[[], Result]] = queue.SimpleQueue()
    stop = threading.Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            done.put(_outcome(work, item))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            yield done.get()()
    finally:
        stop.set()


def _outcome(work: Callable[[Item], Result], item: Item) -> Callable[[], Result]:
    """What to call for the result, or for the error that was met instead."""
    try:
        result = work(item)
    except BaseException as met:
        error = met

        def fail() -> Result:
            raise error

        return fail
    return lambda: result
