"""Recording CUDA graphs beside other threads, and putting right what torch leaves where one cannot be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
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

    before, failure = torch.cuda.current_stream(), None
    try:
        # The default is global: a recording then fails where a loader's thread pins memory at the same time.
        with torch.cuda.graph(graph, pool=pool, stream=_stream(), capture_error_mode="thread_local"):
            try:
                yield
            except RuntimeError as error:
                failure = error
                raise
    except BaseException as error:
        # Torch stays on the stream of a recording that it cannot end.
        torch.cuda.set_stream(before)
        _abandon(pool)
        # What it says then is that something has failed before.
        raise failure or error from None


@contextmanager
def where_recordings_are_made() -> Iterator[None]:
    """Run the block on the stream of recordings.

    Data parallelism and ZeRO keep the nodes at which gradients of parameters arrive. They belong to the stream on which
    the engine was made, and would draw it into a recording that is made on another: no recording may hold the default
    stream.
    """
    import torch

    outer, inner = torch.cuda.current_stream(), _stream()
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield
    finally:
        outer.wait_stream(inner)


@cache
def _stream() -> Any:
    import torch

    return torch.cuda.Stream()


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
