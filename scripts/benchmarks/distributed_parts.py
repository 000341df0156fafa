"""What the time of a run of `distributed.py` is made of, in each of its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import gora.planning.gradient_pass as gradient_pass
import gora.training.start as start
from gora.gradients.collect import Collection
from gora.runtime.world import World

_ADAPTER = 100_000
"""Values from which a sum over processes is taken for that of an adapter's gradients."""


class Parts:
    """Seconds of the parts of one run.

    Attributes:
        seconds: `first`, the first micro-batch with what is loaded for it; `rounds`, the other ones; `signal`, the
            comparison of the two halves over processes; `reduced`, the gradient sums on their way to their owners.
        waited: of each training step whose gradients gora sums itself, the wait for the slowest process and the sum.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waited: list[float] = []

    def of_all(self, world: World) -> dict[str, Any]:
        """Those of every process, rounded."""
        own = {name: round(value, 4) for name, value in self.seconds.items()}
        return {"parts": world.gather(own), "waited": world.gather([round(value, 5) for value in self.waited])}


@contextmanager
def measured() -> Iterator[Parts]:
    """Measure the parts of what runs in the block. A GPU is waited for where a part begins and ends."""
    parts = Parts()
    run, one_round, everywhere = Collection.run, Collection._round, World.sum_everywhere
    signal, reduce = gradient_pass.signal_of, gradient_pass.reduce_to_owners

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*given: Any, **named: Any) -> Any:
            _synchronize()
            begin = time.perf_counter()
            result = call(*given, **named)
            _synchronize()
            parts.seconds[name] = time.perf_counter() - begin
            return result

        return timing

    def whole(self: Collection) -> Any:
        result = timed("rounds", run)(self)
        parts.seconds["rounds"] -= parts.seconds.get("first", 0.0)
        return result

    def first(self: Collection, *given: Any) -> None:
        (one_round if "first" in parts.seconds else timed("first", one_round))(self, *given)

    def waiting(self: World, tensor: torch.Tensor) -> None:
        if tensor.numel() < _ADAPTER:
            everywhere(self, tensor)
            return
        _synchronize()
        begin = time.perf_counter()
        everywhere(self, tensor)
        _synchronize()
        parts.waited.append(time.perf_counter() - begin)

    Collection.run, Collection._round, World.sum_everywhere = whole, first, waiting  # type: ignore[method-assign]
    gradient_pass.signal_of, gradient_pass.reduce_to_owners = timed("signal", signal), timed("reduced", reduce)
    try:
        yield parts
    finally:
        Collection.run, Collection._round, World.sum_everywhere = run, one_round, everywhere  # type: ignore[method-assign]
        gradient_pass.signal_of, gradient_pass.reduce_to_owners = signal, reduce


def leave_weights_unchecked() -> None:
    """Take no fingerprint of the weights on a GPU before and after training, which is most of a short run."""

    def unchecked(weights: Iterator[Any]) -> str:
        for _ in weights:  # other processes hand over their shares
            pass
        return "unchecked"

    start.weights_fingerprint = unchecked  # type: ignore[assignment]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
