"""The last steps of a process whose work is done: groups of processes end in order, and nothing breaks on the way out.

Torch, its process groups, DeepSpeed and bitsandbytes have threads of their own, and DeepSpeed's parameters keep groups
alive in cycles that Python never frees. A thread that comes back from C++ while the interpreter is taken down is ended
in the middle of it, and takes the process along: `terminate called without an active exception`, SIGABRT, exit code -6,
after all has been written. So gora does not have the interpreter taken down.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without taking the interpreter down if torch's threads may run in it.

    What was registered to run at exit runs.
    """
    if "torch" not in sys.modules:
        sys.exit(code)
    if code == 0:
        # After a failure the others may not be there to take their part.
        destroy_process_groups()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more, or it is closed
            stream.flush()
    os._exit(code)


def destroy_process_groups() -> None:
    """Close the connections to the other processes, DeepSpeed's groups included."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
