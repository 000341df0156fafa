"""Forward and backward pass of one shape, recorded once and replayed.

A small micro-batch keeps a fast GPU waiting for the host, which needs longer to launch the thousands of kernels than
the GPU needs to run them. Replayed as one CUDA graph they follow each other without the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from gora.gradients.attach import Attachment, Receiver
from gora.gradients.probe import Probe
from gora.runtime.cuda_graphs import recorded_into

LONGEST = 1024
"""Most tokens of a micro-batch that is worth it for any model: with more, large ones keep a GPU busy anyway."""
MOST = 8192
"""Most tokens of a micro-batch for which it is tried out whether it is worth it."""

_WARM_UPS = 2
_LAUNCHING = 0.7
"""Share of a pass that the host takes to launch it, from which on a recording is tried."""
_LEAST = 0.25
"""Share of the usual time that arithmetic alone may take for it."""


def is_faster(
    attachment: Attachment,
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    batch: Mapping[str, Tensor],
    padded: Mapping[str, Tensor],
    least: float,
    micro_batches: int = 1,
) -> bool:
    """Whether a recorded pass takes less time than a pass as usual; adds to no sum.

    Args:
        attachment: attached, with every layer tapped.
        loss_of: mean loss of a micro-batch; of several, one for each.
        batch: what is run as usual.
        padded: as it would be recorded.
        least: seconds that a GPU takes for a recorded pass at least, by arithmetic; nothing is recorded to be tried
            where that is not far below the time as usual.
        micro_batches: how many there are in `batch`.

    Raises:
        RuntimeError: the model does something that cannot be recorded.
    """
    probe = attachment.receiver = Probe(next(iter(padded.values())).device)
    launched, usual = (each / micro_batches for each in _seconds(lambda: loss_of(batch).sum().backward()))
    if launched < _LAUNCHING * usual or least > _LEAST * usual:
        return False
    _, replayed = _seconds(partial(Replay(attachment, probe, loss_of, padded), padded))
    torch.cuda.empty_cache()
    return replayed < usual


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Until the host has launched it, and until it is done; of two times the shorter one."""
    times = []
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        launched = time.perf_counter() - began
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began, launched))
    done, launched = min(times)
    return launched, done


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
