"""Starts the same command in several processes, with torch's elastic launcher.

The launcher stays as their parent: it hands on signals, ends all when one fails, and answers with the exit code of the
first that failed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gora.errors import GoraError, InputError
from gora.runtime.console import output
from gora.runtime.failure import FAILURE_FILE
from gora.runtime.scratch import Scratch
from gora.runtime.starter import bound_to_this_process
from gora.runtime.waiting import PATIENCE, Wait

# Not SIGABRT, by which a process ends itself when its connections fail, nor the signals that the launcher hands on.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes are asked for, and where.

    Attributes:
        gpus: processes on this host, one a GPU; None takes all visible GPUs.
        processes: processes on this host, on its CPUs.
        nodes: hosts.
        node_rank: which host this is; only says who is who, any order will do.
        rendezvous: `host:port` of the first host, where they meet.
    """

    gpus: int | None = None
    processes: int | None = None
    nodes: int = 1
    node_rank: int | None = None
    rendezvous: str | None = None

    def start(self, arguments: Sequence[str], holding: Callable[[], AbstractContextManager[object]]) -> bool:
        """Run `gora` with these arguments in several processes, if that is asked for and this is not one of them.

        Args:
            arguments: of the command.
            holding: what is held while they run, where this host is the only one.

        Returns:
            Whether it was done; False means that this process is to do the work.

        Raises:
            InputError: the numbers do not fit each other or this host.
            GoraError: a process was killed, or the hosts did not find each other.
            SystemExit: a process failed and has said why.
        """
        from gora.runtime.world import SRUN_TASKS, find, launched

        if launched():
            self._warn_of_outer_launch(find().main)
            return False
        self._check()
        # srun's one task per GPU is a launch; its one task per host, which says --nodes, is to be one.
        if not self._explicit and find().size > 1:
            return False
        count = self._count()
        if self.processes is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if count * self.nodes == 1:
            # Alone, whatever srun has started beside it.
            os.environ.pop(SRUN_TASKS, None)
            return False
        # Of several hosts none is the one for all: the first of their processes takes it.
        with holding() if self.nodes == 1 else nullcontext():
            _run(self, count, [sys.executable, "-m", "gora", *arguments])
        return True

    @property
    def _explicit(self) -> bool:
        return self.nodes > 1 or self.gpus is not None or self.processes is not None

    def _warn_of_outer_launch(self, main: bool) -> None:
        """Say which options do nothing here; processes that gora has started were given the same ones."""
        given = [
            f"--{each.name.replace('_', '-')}" for each in fields(self) if getattr(self, each.name) != each.default
        ]
        if given and main and FAILURE_FILE not in os.environ:
            output.warn(f"{', '.join(given)}: not used, another launcher has started the processes of this run.")

    def _check(self) -> None:
        if self.gpus is not None and self.processes is not None:
            raise InputError("--gpus and --processes both say how many processes there are: give one of the two.")
        if self.nodes > 1 and self.rendezvous is None:
            raise InputError("--nodes needs --rendezvous HOST:PORT, where all hosts reach the first of them.")
        if self.nodes == 1 and (self.rendezvous is not None or self.node_rank is not None):
            raise InputError("--node-rank and --rendezvous belong to --nodes: say how many hosts there are.")
        if self.node_rank is not None and self.node_rank >= self.nodes:
            raise InputError(f"--node-rank {self.node_rank}: of {self.nodes} hosts the last one is {self.nodes - 1}.")
        place = re.fullmatch(r"[\w.:\[\]-]+:(\d{1,5})", self.rendezvous or "host:1")
        if not place or not 0 < int(place[1]) < 2**16:
            raise InputError(f"--rendezvous {self.rendezvous}: HOST:PORT is expected, such as node01:29400.")

    def _count(self) -> int:
        if self.processes is not None:
            return self.processes
        from torch.cuda import device_count

        visible = device_count()
        if self.gpus is not None and self.gpus > visible:
            instead = "use --processes N to run on CPUs" if not visible else f"give --gpus {visible} at most"
            raise InputError(f"--gpus {self.gpus}: {visible} GPUs are visible here; {instead}.")
        return self.gpus or max(visible, 1)


def _run(launch: Launch, count: int, command: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    from gora.runtime.agent import make_agent

    with Scratch("launch") as folder:
        _prepare_environment(count, folder)
        agent = None
        try:
            line = f"waiting for the first host at {launch.rendezvous}" if launch.nodes > 1 else ""
            with Wait(lambda: line, PATIENCE) as wait:
                if launch.node_rank:
                    _await_first_host(str(launch.rendezvous), wait)
                agent, rendezvous = wait.call(
                    lambda: make_agent(
                        command,
                        count,
                        folder,
                        nodes=launch.nodes,
                        rendezvous=launch.rendezvous,
                        is_host=None if launch.node_rank is None else launch.node_rank == 0,
                    )
                )
            try:
                result = agent.run()
            finally:
                rendezvous.shutdown()
        except SignalException as stop:
            # The processes have stopped, and have said what they kept.
            if _all_ended_well(agent):
                return
            sys.exit(128 + stop.sigval)
        except (RendezvousError, TimeoutError) as error:
            reason = (str(error.__cause__ or error).splitlines() or ["no answer"])[0]
            raise GoraError(f"The hosts did not meet at {launch.rendezvous}: {reason}") from None
        if result.is_failed():
            _report(result.failures, folder)


def _await_first_host(rendezvous: str, wait: Wait) -> None:
    """Wait until the first host listens; torch's own waiting does so too, but is deaf to signals."""
    host, _, port = rendezvous.rpartition(":")
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if wait.left < 0:
                raise GoraError(f"--rendezvous {rendezvous}: the first host does not answer ({error}).") from None
        wait.pause()


def _prepare_environment(count: int, folder: str) -> None:
    from torch import get_num_threads

    from gora.runtime.agent import SIGNALS

    os.environ[FAILURE_FILE] = os.path.join(folder, "first-failure")
    os.environ.update(bound_to_this_process())
    # Under nohup, the end of the terminal is no reason to stop.
    hangup = "" if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ",SIGHUP"
    os.environ[SIGNALS] = f"SIGTERM,SIGINT{hangup}"
    # As many threads as cores that this host, or the scheduler, gives us, over all processes together.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, get_num_threads() // count)))


def _all_ended_well(agent: Any) -> bool:
    handlers = getattr(getattr(agent, "_pcontext", None), "subprocess_handlers", {})
    return bool(handlers) and all(handler.proc.returncode == 0 for handler in handlers.values())


def _report(failures: dict[int, Any], folder: str) -> None:
    # Times are whole seconds. Whoever is ended from outside cannot say so, and others may have failed because of it.
    rank, first = min(failures.items(), key=lambda pair: (-pair[1].exitcode not in _FROM_OUTSIDE, pair[1].timestamp))
    if first.exitcode > 0:
        # It has said itself what went wrong; others failed because of it.
        told = Path(folder, "first-failure")
        sys.exit(int(told.read_text() or 1) if told.exists() else first.exitcode)
    number = -first.exitcode
    cause = " Most often the host ran out of memory." if number == signal.SIGKILL else ""
    raise GoraError(f"Process {rank} was ended by signal {number} ({signal.Signals(number).name}).{cause}")
