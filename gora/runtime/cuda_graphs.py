"""Recording CUDA graphs beside other threads, and putting right what torch leaves where one cannot be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def recorded_into(graph: Any, pool: Any) -> Iterator[None]:
    """Record what is launched in the block, instead of running it.

    Args:
        graph: a `torch.cuda.CUDAGraph`.
        pool: what `torch.cuda.graph_pool_handle` has given, for the memory of this graph and of others.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    import torch

    try:
        # The default is global: a recording then fails where a loader's thread pins memory at the same time.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except BaseException:
        _abandon(pool)
        raise


def _abandon(pool: Any) -> None:
    """Take a failed recording off the allocator.

    Some versions of torch take it for one that goes on: they keep its memory, and that of all tensors that several
    streams have used, to the end of the process.
    """
    import torch

    device = torch.cuda.current_device()
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        # Reached where it still went on, which is where it holds the pool, too.
        torch._C._cuda_releasePool(device, pool)
