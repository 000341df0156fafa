"""How the processes of a run find each other: a store of torch at an address that all know."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from gora.errors import GoraError
from gora.runtime.failure import FAILURE_FILE
from gora.runtime.waiting import PATIENCE, Wait

_HERE = "here"


def meet(index: int, size: int) -> Store:
    """The store of this run, once all of its processes have come to it.

    The environment says where it is (MASTER_ADDR, MASTER_PORT).

    Args:
        index: which process this is.
        size: how many there are.

    Raises:
        GoraError: the others have not come, or the address cannot be used.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    here: int | None = None

    def missing() -> str:
        # Process 0 speaks for all, as long as it is not the one that is missing.
        if here is None:
            return f"waiting for process 0 of {size} at {place}{_why()}"
        return f"waiting for {size - here} of {size} processes at {place}{_why()}" if index == 0 else ""

    with Wait(missing, PATIENCE) as wait:
        try:
            # A launcher that starts processes again may keep the store of those that failed.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"gora/{attempt}", _open(index, place, wait))
            here = store.add(_HERE, 1)
            while here < size and wait.left > 0:
                wait.pause()
                here = store.add(_HERE, 0)
        except DistError as error:
            reason = str(error).splitlines()[0]
            raise GoraError(f"The processes of this run did not meet at {place}: {reason}{_advice()}") from None
        except TimeoutError:
            here = None
    if here is None or here < size:
        absent = f"{size - here} of {size} processes" if here else f"Process 0 of {size}"
        raise GoraError(f"{absent} did not come to {place} within {PATIENCE / 60:.0f} minutes.{_advice()}")
    return store


def _open(index: int, place: str, wait: Wait) -> TCPStore:
    """Host the store, or find it; raises TimeoutError if it is not there in time."""
    host, _, port = place.rpartition(":")
    # torchrun and gora's launcher host it for all of their processes.
    hosting = index == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not hosting and not _listens(host, int(port)):
        if wait.left < 0:
            raise TimeoutError
        wait.pause()
    seconds = timedelta(seconds=PATIENCE)
    return wait.call(
        lambda: TCPStore(host, int(port), None, hosting, seconds, wait_for_workers=False, multi_tenant=True)
    )


def _listens(host: str, port: int) -> bool:
    # Torch's own waiting for a listener warns again and again.
    with suppress(OSError):
        socket.create_connection((host, port), timeout=10).close()
        return True
    return False


def _why() -> str:
    """Why gora takes itself for one of several, unless it has started them itself."""
    if FAILURE_FILE in os.environ:
        return ""
    return f" ({_reason()})"


def _advice() -> str:
    if FAILURE_FILE in os.environ:
        return ""
    return f" {_reason()}: if nothing has started several processes, unset them; if MASTER_PORT is taken, set another."


def _reason() -> str:
    names = [name for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS") if name in os.environ]
    return f"{', '.join(names)} are set in the environment"
