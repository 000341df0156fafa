"""A process that gora starts ends with the one that started it, also when that one is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from gora.runtime.interrupt import StopSignal

_STARTER = "GORA_STARTER"
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_GRACE = 180.0
"""Seconds that a process has to save and end after its starter has gone."""


def bound_to_this_process() -> dict[str, str]:
    """Environment of a `gora` that is to end with this process; start it from the main thread.

    The kernel keeps the bond to the thread that starts a process, and would take the end of a pool's thread for ours.
    """
    return {_STARTER: str(os.getpid())}


def end_with_starter() -> None:
    """Take the end of the process that started this one for a termination request, if it asked for that (Linux).

    Nobody can hand on SIGKILL, so the kernel is asked for SIGTERM when it has happened. Every process of a chain, such
    as a comparison, its runs and their workers, is bound to the one before.

    Raises:
        StopSignal: the other process has ended already.
    """
    # Not for processes that this one starts: each is told who started it, if it is to know.
    starter = os.environ.pop(_STARTER, None)
    if starter is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGTERM))
    # The kernel tells of an end that is still to come only.
    if os.getppid() != int(starter):
        raise StopSignal(signal.SIGTERM)
    threading.Thread(target=_end_for_certain, args=(int(starter),), daemon=True).start()


def die_with_parent() -> None:
    """Have the kernel kill this forked process when the thread that forked it ends, however it ends (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))


def _end_for_certain(starter: int) -> None:
    """End this process some time after its starter has gone, whatever it is doing.

    A process may wait in a collective operation on a GPU for one that has ended already; there it hears no signal, and
    the launcher that would have ended it is no more.
    """
    while os.getppid() == starter:
        time.sleep(1)
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGTERM)
