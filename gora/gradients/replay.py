"""Forward and backward pass of one shape, recorded once and replayed.

A small micro-batch keeps a fast GPU waiting for the host, which needs longer to launch the thousands of kernels than
the GPU needs to run them. Replayed as one CUDA graph they follow each other without the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gora.gradients.attach import Attachment, Receiver
from gora.gradients.probe import Probe
from gora.runtime.cuda_graphs import recorded_into

LONGEST = 1024
"""Most tokens of a micro-batch that is small whatever the model: a recording of it takes little memory."""
MOST = 8192
"""Most tokens of a micro-batch for which it is tried out whether a recording is worth it."""

_WARM_UPS = 2
_TIMED = (3, 4)
"""Which passes are timed as usual, counted from 1: the first ones load kernels and take memory."""
_REPLAYS = 2
"""Replayed micro-batches that are timed: the first also uploads the graph."""
_LAUNCHING = 0.7
"""Share of a pass that the host takes to launch it, from which on a recording is tried."""
_LEAST = 0.5
"""Share of the usual time that a recorded pass may take by arithmetic at a GPU's peak; it takes about twice as long."""


class Recorder:
    """Runs the passes of micro-batches as usual, and replays recorded ones where that turns out to be faster.

    That is found out on passes that count like all others: two are timed as usual and, where the GPU waits for its
    host, two replayed ones after them.

    Args:
        record: records a pass; gives what runs the micro-batch of an index, adds it and returns its loss. May fail with
            a RuntimeError, since some models look at values on the host.
        least: seconds that arithmetic takes at least for a recorded pass.
        say: is told what was decided, in words.
    """

    def __init__(
        self, record: Callable[[], Callable[[int], Tensor]], least: float, say: Callable[[str], object]
    ) -> None:
        self._record, self._least, self._say = record, least, say
        self._replay: Callable[[int], Tensor] | None = None
        self._passes, self._replays = 0, 0
        self._usual, self._replayed = math.inf, math.inf
        self._waits = True

    @property
    def replays(self) -> bool:
        """Whether the next micro-batch is replayed."""
        return self._replay is not None

    def run(self, work: Callable[[], object], micro_batches: int) -> None:
        """Run a pass of so many micro-batches as usual."""
        self._passes += 1
        if self._passes not in _TIMED:
            work()
            return
        launched, done = _seconds(work)
        self._usual = min(self._usual, done / micro_batches)
        self._waits = self._waits and launched >= _LAUNCHING * done
        if self._passes == _TIMED[-1]:
            self._decide()

    def replay(self, index: int) -> Tensor:
        """Replay a micro-batch; returns its loss."""
        assert self._replay is not None
        if self._replays == _REPLAYS:
            return self._replay(index)
        losses: list[Tensor] = []
        _, done = _seconds(lambda: losses.append(self._replay(index)))  # type: ignore[misc]
        self._replays, self._replayed = self._replays + 1, min(self._replayed, done)
        if self._replays == _REPLAYS and self._replayed >= self._usual:
            self._replay = None
            torch.cuda.empty_cache()
            self._say("no longer: it is not faster")
        return losses[0]

    def _decide(self) -> None:
        if not self._waits:
            self._say("no: the GPU does not wait for its host")
        elif self._least > _LEAST * self._usual:
            self._say("no: padding would cost more than launches do")
        else:
            try:
                self._replay = self._record()
            except RuntimeError as error:
                # Some say nothing: a model's `raise NotImplementedError`.
                words = str(error).strip() or type(error).__name__
                self._say(f"no: {words.splitlines()[0]}")


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Until the host has launched it, and until it is done."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    return launched, time.perf_counter() - began


class Replay:
    """Recorded passes over micro-batches of one shape; contributions go to the receiver at every call.

    Args:
        attachment: attached, with every layer tapped.
        receiver: sums on the device.
        loss_of: mean loss of a micro-batch.
        example: a micro-batch of the shape; its values do not matter.

    Raises:
        RuntimeError: the model does something that cannot be recorded.
    """

    def __init__(
        self,
        attachment: Attachment,
        receiver: Receiver,
        loss_of: Callable[[Mapping[str, Tensor]], Tensor],
        example: Mapping[str, Tensor],
    ) -> None:
        self._inputs = {key: tensor.clone() for key, tensor in example.items()}
        attachment.receiver = Probe(next(iter(self._inputs.values())).device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                loss_of(self._inputs).backward()
        torch.cuda.current_stream().wait_stream(aside)
        attachment.receiver = receiver
        self._graph = torch.cuda.CUDAGraph()
        with recorded_into(self._graph, torch.cuda.graph_pool_handle()):
            loss = loss_of(self._inputs)
            loss.backward()
            self._loss = loss.detach()

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run one micro-batch; returns its loss."""
        for key, tensor in self._inputs.items():
            tensor.copy_(batch[key], non_blocking=True)
        self._graph.replay()
        return self._loss.clone()
