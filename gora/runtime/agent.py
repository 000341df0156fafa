"""Torch's elastic agent, which starts and watches the processes of this host, with gora's patience."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

from gora.runtime.interrupt import SAME_REQUEST
from gora.runtime.waiting import PATIENCE, Wait

SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""The variable that names the signals which end the processes."""
_GRACE_AFTER_FAILURE = 10
_GRACE_AFTER_SIGNAL = 3600


def make_agent(
    command: list[str],
    count: int,
    folder: str,
    *,
    nodes: int,
    rendezvous: str | None,
    is_host: bool | None,
) -> tuple[LocalElasticAgent, Any]:
    """An agent for one host, and the place where it meets those of the others.

    Args:
        command: what every process runs.
        count: processes of this host.
        folder: for what torch writes on the way.
        nodes: hosts.
        rendezvous: `host:port` of the first host; None where there is one only.
        is_host: whether this is the first; None lets them settle it.
    """
    # gora says itself what became of its processes.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # One host needs no name that others could resolve; many laptops have none.
    address = "localhost" if nodes == 1 else None
    meeting = registry.get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=rendezvous or "localhost:0",
            run_id=os.environ.get("SLURM_JOB_ID", "gora"),
            min_nodes=nodes,
            max_nodes=nodes,
            join_timeout=int(PATIENCE),
            local_addr=address,
            **({} if is_host is None else {"is_host": is_host}),
        )
    )
    spec = WorkerSpec(
        role="gora",
        local_world_size=count,
        entrypoint=command[0],
        args=tuple(command[1:]),
        rdzv_handler=meeting,
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=address,
    )
    return _Agent(spec, DefaultLogsSpecs(log_dir=folder)), meeting


class _Agent(LocalElasticAgent):
    """Gives processes time to save after a signal, and a few seconds after a second one or once one has failed."""

    grace = _GRACE_AFTER_SIGNAL

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        hosts = worker_group.spec.rdzv_handler.settings.min_nodes  # type: ignore[attr-defined]
        with Wait(lambda: f"waiting for the others of {hosts} hosts" if hosts > 1 else "", PATIENCE):
            super()._rendezvous(worker_group)

    def _start_workers(self, *arguments: Any, **named: Any) -> Any:
        started = super()._start_workers(*arguments, **named)
        context: Any = self._pcontext
        # What is closed without a time given is closed because a process has failed.
        context.close = partial(_close, context.close)
        handler = _raise_twice()
        for name in os.environ[SIGNALS].split(","):
            signal.signal(getattr(signal, name), handler)
        return started

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *_: Any, **__: Any) -> None:
        if self._pcontext:
            patience, self.grace = self.grace, _GRACE_AFTER_FAILURE
            # The processes answer SIGTERM by saving, and do not know of a terminal that has gone.
            self._pcontext.close(signal.SIGTERM if death_sig == signal.SIGHUP else death_sig, patience)

    def _stop_workers(self, *_: Any, **__: Any) -> None:
        self.grace = _GRACE_AFTER_FAILURE
        self._shutdown()


def _close(close: Callable[..., None], death_sig: signal.Signals | None = None, timeout: int | None = None) -> None:
    close(death_sig, _GRACE_AFTER_FAILURE if timeout is None else timeout)


def _raise_twice() -> Callable[[int, FrameType | None], None]:
    """A handler that raises for the first signal and for a second.

    One request can arrive twice, from a scheduler and from a launcher. A third one would only keep the second from
    ending the processes.
    """
    asked: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if len(asked) < 2 and not (asked and now - asked[0] < SAME_REQUEST):
            asked.append(now)
            raise SignalException(f"signal {number}", sigval=signal.Signals(number))

    return handle
