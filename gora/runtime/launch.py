"""Starts the same command in several processes, with torch's elastic launcher.

The launcher stays as their parent: it hands on signals, ends all when one fails, and answers with the exit code of the
first that failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gora.errors import GoraError, InputError
from gora.runtime.failure import FAILURE_FILE

_GRACE_AFTER_FAILURE = 10
_GRACE_AFTER_SIGNAL = 3600
_PATIENCE = 900


@dataclass(frozen=True)
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

    def start(self, arguments: Sequence[str]) -> bool:
        """Run `gora` with these arguments in several processes, if that is asked for and this is none of them.

        Returns:
            Whether it was done; False means that this process is to do the work.

        Raises:
            InputError: the numbers do not fit each other or this host.
            GoraError: a process was killed.
            SystemExit: a process failed and has said why.
        """
        from gora.runtime.world import SRUN_TASKS, find, launched

        if launched():
            return False
        self._check()
        # srun's one task per GPU is a launch; its one task per host, which says --nodes, is to be one.
        if not self._explicit and find().size > 1:
            return False
        count = self._count()
        if count * self.nodes == 1:
            # Alone, whatever srun has started beside it.
            os.environ.pop(SRUN_TASKS, None)
            self._hide_gpus()
            return False
        _run(self, count, [sys.executable, "-m", "gora", *arguments])
        return True

    @property
    def _explicit(self) -> bool:
        return self.nodes > 1 or self.gpus is not None or self.processes is not None

    def _check(self) -> None:
        if self.gpus is not None and self.processes is not None:
            raise InputError("--gpus and --processes both say how many processes there are: give one of the two.")
        if self.nodes > 1 and self.rendezvous is None:
            raise InputError("--nodes needs --rendezvous HOST:PORT, where all hosts reach the first of them.")
        if self.nodes == 1 and (self.rendezvous is not None or self.node_rank is not None):
            raise InputError("--node-rank and --rendezvous belong to --nodes: say how many hosts there are.")
        if self.node_rank is not None and self.node_rank >= self.nodes:
            raise InputError(f"--node-rank {self.node_rank}: of {self.nodes} hosts the last one is {self.nodes - 1}.")
        if self.rendezvous is not None:
            from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

            try:
                parse_rendezvous_endpoint(self.rendezvous, default_port=0)
            except ValueError as error:
                raise InputError(f"--rendezvous needs HOST:PORT, such as node01:29400. {error}") from None

    def _count(self) -> int:
        if self.processes is not None:
            return self.processes
        from torch.cuda import device_count

        visible = device_count()
        if self.gpus is not None and self.gpus > visible:
            instead = "use --processes N to run on CPUs" if not visible else f"give --gpus {visible} at most"
            raise InputError(f"--gpus {self.gpus}: {visible} GPUs are visible here; {instead}.")
        return self.gpus or max(visible, 1)

    def _hide_gpus(self) -> None:
        if self.processes is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _run(launch: Launch, count: int, command: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    with tempfile.TemporaryDirectory(prefix="gora-") as folder:
        _prepare_environment(launch, count, folder)
        try:
            agent, rendezvous = _agent(launch, count, command, folder)
            try:
                result = agent.run()
            finally:
                rendezvous.shutdown()
        except SignalException as stop:
            # The processes have stopped, and have said what they kept.
            sys.exit(128 + stop.sigval)
        except RendezvousError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise GoraError(f"The hosts did not meet at {launch.rendezvous}: {reason}") from None
    if result.is_failed():
        _report(result.failures)


def _prepare_environment(launch: Launch, count: int, folder: str) -> None:
    import torch

    os.environ[FAILURE_FILE] = os.path.join(folder, "first-failure")
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP"
    # As many threads as cores that this host, or the scheduler, gives us, over all processes together.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    launch._hide_gpus()
    # gora says itself what became of its processes.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)


def _agent(launch: Launch, count: int, command: list[str], folder: str) -> tuple[Any, Any]:
    from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

    class Agent(LocalElasticAgent):
        """Gives processes time to save after a signal, and a few seconds once one has failed."""

        grace = _GRACE_AFTER_SIGNAL

        def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *_: Any, **__: Any) -> None:
            if self._pcontext:
                self._pcontext.close(death_sig, self.grace)

        def _stop_workers(self, *_: Any, **__: Any) -> None:
            self.grace = _GRACE_AFTER_FAILURE
            self._shutdown()

    settings: dict[str, Any] = {"is_host": launch.node_rank == 0} if launch.node_rank is not None else {}
    rendezvous = registry.get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=launch.rendezvous or "localhost:0",
            run_id=os.environ.get("SLURM_JOB_ID", "gora"),
            min_nodes=launch.nodes,
            max_nodes=launch.nodes,
            join_timeout=_PATIENCE,
            read_timeout=_PATIENCE,
            **settings,
        )
    )
    spec = WorkerSpec(
        role="gora",
        local_world_size=count,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=rendezvous,
        max_restarts=0,
        monitor_interval=0.1,
    )
    logs = DefaultLogsSpecs(log_dir=folder)
    return Agent(spec, logs), rendezvous


def _report(failures: dict[int, Any]) -> None:
    rank, first = min(failures.items(), key=lambda pair: pair[1].timestamp)
    if first.exitcode > 0:
        # It has said itself what went wrong.
        sys.exit(first.exitcode)
    number = -first.exitcode
    cause = " Most often the host ran out of memory." if number == signal.SIGKILL else ""
    raise GoraError(f"Process {rank} was ended by signal {number} ({signal.Signals(number).name}).{cause}")
