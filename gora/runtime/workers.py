"""Worker processes of one host for work in many parts: results come in the order of the parts."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any, TypeVar

from gora.errors import GoraError
from gora.runtime.starter import die_with_parent

Part = TypeVar("Part")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 2
_work: Callable[[Any], Any]


def cores(processes: int = 1) -> int:
    """Cores that work may use: those of this process' affinity, and no more than `OMP_NUM_THREADS` for each process.

    Args:
        processes: how many processes of the run share this host, the others of which wait.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(asked) * processes) if asked.isdecimal() and int(asked) else usable


def in_order(work: Callable[[Part], Result], parts: Iterable[Part], count: int) -> Iterator[Result]:
    """Do some work for each part, in several processes where there are several parts and cores.

    Args:
        work: made once, before the processes are forked; parts and results travel through pipes.
        parts: taken only a few ahead of the results, so that they need not fit in memory.
        count: processes; one works in this process itself, and so do systems where a fork is not safe.

    Raises:
        GoraError: a process was killed, as for its memory; otherwise what `work` raises.
    """
    parts = iter(parts)
    first = [part for _, part in zip(range(2), parts, strict=False)]
    parts = chain(first, parts)
    if len(first) < 2 or count < 2 or sys.platform != "linux":
        yield from map(work, parts)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(work,))
    results: deque[Future[Result]] = deque()
    try:
        for part in parts:
            results.append(pool.submit(_do, part))
            if len(results) >= count * (1 + _WAITING_PER_WORKER):
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    except BrokenProcessPool as error:
        raise GoraError(
            "A worker process has ended, most likely for want of memory. With OMP_NUM_THREADS=1 there is only one."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # What was there before the fork stays shared: a collection would touch, and so copy, its pages.
    gc.freeze()
    # Signals are the business of the process that forked this one; where it is killed, so is this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    # The threads of the tokenizers library do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _do(part: Any) -> Any:
    return _work(part)
