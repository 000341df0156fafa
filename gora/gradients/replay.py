"""Forward and backward pass of one shape, recorded once and replayed.

A small micro-batch keeps a fast GPU waiting for the host, which needs longer to launch the thousands of kernels than
the GPU needs to run them. Replayed as one CUDA graph they follow each other without the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gora.gradients.attach import Attachment, Receiver
from gora.gradients.probe import Probe
from gora.runtime.cuda_graphs import recorded_into

LONGEST = 1024
"""Most tokens of a micro-batch that is worth it: above, the GPU is busy anyway."""

_WARM_UPS = 2


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
