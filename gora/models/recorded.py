"""A model's blocks recorded as CUDA graphs, forward and backward, and replayed for each micro-batch.

A host needs microseconds to launch a kernel, and a pass has thousands. Where a GPU is done sooner, it waits. A graph is
launched as a whole, but its inputs have one shape. Rows of one length have it; rows that lie end to end are filled up,
by a row of their own, to one of a few lengths. They are so whether the length is recorded yet or not, and the result is
the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gora.models.rows_apart import laid_out
from gora.runtime.cuda_graphs import recorded_into
from gora.runtime.out_of_memory import is_out_of_memory

_STEP = 64
LENGTHS = 32
"""A full micro-batch has one of so many lengths at most, all multiples of 64: 1.6 % of it is filling on average."""
_MOST = 16
"""Recordings that are kept: each holds the output of the blocks, and what the driver needs for its kernels."""
_WARM_UPS = 2
_LAUNCHING = 0.7
"""Share of a forward pass that the host takes to launch it, from which on the GPU is taken to wait for the host."""


@dataclass(frozen=True)
class Shape:
    """What a recording is of.

    Attributes:
        tokens: of all rows, filling included.
        rows: how many there are; where they lie end to end, how many there may be.
        longest: tokens that a row may have, a power of two; 0 where all have as many.
    """

    tokens: int
    rows: int
    longest: int = 0


@dataclass(frozen=True)
class Inputs:
    """Rows of one length, or end to end with the filling behind them.

    Attributes:
        ids: rows x tokens, or 1 x tokens of all; int64.
        positions: the same, from 0 in each row; None for rows of one length, as is the next.
        bounds: where rows begin, and where the last ends: int32. Rows without tokens follow the last.
    """

    ids: Tensor
    positions: Tensor | None = None
    bounds: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """Those that are there."""
        return [each for each in (self.ids, self.positions, self.bounds) if each is not None]


class Recording(Protocol):
    """Both passes over inputs of one shape."""

    def forward(self, inputs: Inputs) -> Tensor:
        """The last hidden state, which is valid until the next call."""
        ...

    def backward(self, gradient: Tensor) -> None:
        """Add the gradients of the trained parameters to their sums."""
        ...


class RecordedBlocks:
    """Runs the blocks of a causal model: as a recording once the shape of its inputs has come before.

    Args:
        body: the model without its output layer.
        parameters: all that is trained, within the body.
        sums: of their gradients, float32, one for each; a recording adds to these very tensors.
        tokens: the most tokens of a micro-batch.
        say: is told in a line what is recorded, and why not.
        lengths: how many a micro-batch may have where rows lie end to end.
    """

    def __init__(
        self,
        body: nn.Module,
        parameters: Sequence[nn.Parameter],
        sums: Sequence[Tensor],
        tokens: int,
        say: Callable[[str], None],
        lengths: int = LENGTHS,
    ) -> None:
        self._body, self._parameters, self._sums, self._say = body, list(parameters), list(sums), say
        self._step = max(_STEP, tokens // lengths // _STEP * _STEP)
        self._recorded: dict[Shape, Recording] = {}
        self._seen: set[Shape] = set()
        self._pool: Any = None
        self._off = False
        self._anchor = torch.zeros((), device=self._sums[0].device, requires_grad=True)

    def __call__(self, ids: Tensor, positions: Tensor | None, lengths: tuple[int, ...]) -> Tensor:
        """The last hidden state.

        Args:
            ids: rows of one length without padding, rows x tokens; or rows end to end, 1 x tokens.
            positions: where rows lie end to end, 1 x tokens, from 0 in each.
            lengths: the tokens of each then; else empty.

        Returns:
            The shape of the ids x width; its gradient, and no parameter's, flows through autograd where a recording
            ran.
        """
        tokens = ids.shape[1]
        if positions is None:
            shape, inputs = Shape(ids.numel(), len(ids)), Inputs(ids)
        else:
            shape, inputs = self._filled(ids, positions, lengths)
            lengths = (*lengths, shape.tokens - tokens)
        recording = self._of(shape, inputs)
        if recording is None:
            hidden = _run(self._body, shape, inputs, lengths)
        else:
            hidden = _Replayed.apply(self._anchor, recording, inputs)  # type: ignore[no-untyped-call]
        return hidden[:, :tokens]

    @property
    def recordings(self) -> int:
        """How many shapes are recorded."""
        return len(self._recorded)

    def release(self) -> None:
        """Give the memory of all recordings back, and record no more."""
        self._off = True
        self._recorded.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _filled(self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...]) -> tuple[Shape, Inputs]:
        tokens = ids.shape[1]
        whole = -(-tokens // self._step) * self._step
        missing = whole - tokens
        # Of the filling, what it may be: how much of it there is would ask for another recording.
        longest = max(*lengths, self._step)
        shape = Shape(whole, 1 << len(lengths).bit_length(), 1 << (longest - 1).bit_length())
        ends = torch.tensor([0, *lengths, missing], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        bounds = pad(ends, (0, shape.rows + 1 - len(ends)), value=whole).to(ids.device, non_blocking=True)
        filling = torch.arange(missing, device=ids.device)[None]
        return shape, Inputs(pad(ids, (0, missing)), torch.cat([positions, filling], dim=1), bounds)

    def _of(self, shape: Shape, inputs: Inputs) -> Recording | None:
        if shape in self._recorded or self._off:
            return self._recorded.get(shape)
        if shape not in self._seen or len(self._recorded) == _MOST:
            self._seen.add(shape)
            return None
        if not self._recorded and not self._waits(shape, inputs):
            self._off = True
            self._say("recorded  no: the GPU does not wait for the host")
            return None
        try:
            self._recorded[shape] = self._record(shape, inputs)
        except (RuntimeError, NotImplementedError) as error:
            self._off = True
            reason = "no memory for it" if is_out_of_memory(error) else str(error).strip().splitlines()[0]
            self._say(f"recorded  no: {reason}")
            return None
        if len(self._recorded) == 1:
            self._say("recorded  passes that come again, as CUDA graphs")
        return self._recorded[shape]

    def _waits(self, shape: Shape, inputs: Inputs) -> bool:
        """Whether the GPU waits for the host in a forward pass."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        _run(self._body, shape, inputs)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        return launched - began > _LAUNCHING * (time.perf_counter() - began)

    def _record(self, shape: Shape, inputs: Inputs) -> Recording:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return Graphs(self._body, self._parameters, self._sums, self._pool, shape, inputs)


def _run(body: nn.Module, shape: Shape, inputs: Inputs, lengths: tuple[int, ...] = ()) -> Tensor:
    """The last hidden state; without the lengths of rows end to end, attention has to do with their bounds."""
    apart = laid_out(lengths, inputs.bounds, shape.longest) if inputs.bounds is not None else nullcontext()
    with apart:
        hidden: Tensor = body(input_ids=inputs.ids, position_ids=inputs.positions, use_cache=False)[0]
    return hidden


def differs(found: Tensor, expected: Tensor) -> bool:
    """Whether hidden states say something else of any token than rounding explains.

    Products of other shapes of blocks, as libraries choose them within a recording, are apart by about a hundredth of
    the deviation; states of other tokens by more than the whole.

    Args:
        found: rows x tokens x width.
        expected: the same.
    """
    apart = (found.float() - expected.float()).abs().mean(dim=-1)
    return bool(apart.max() > 0.25 * expected.float().std())


class Graphs:
    """Both passes of one shape as CUDA graphs; see `Recording`.

    Args:
        body: what is run.
        parameters: what is trained.
        sums: of their gradients.
        pool: memory that recordings share: they run one after the other.
        shape: of the inputs.
        inputs: of that shape.

    Raises:
        RuntimeError: the model does something that cannot be recorded, or there is no memory for it.
    """

    def __init__(
        self,
        body: nn.Module,
        parameters: list[nn.Parameter],
        sums: list[Tensor],
        pool: Any,
        shape: Shape,
        inputs: Inputs,
    ) -> None:
        self._inputs = Inputs(*(each.clone() for each in inputs.parts()))
        # Memory that passes have left for others to reuse is no use to graphs, nor the other way round.
        torch.cuda.empty_cache()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.enable_grad():
            for _ in range(_WARM_UPS):
                hidden = _run(body, shape, self._inputs)
                torch.autograd.grad(hidden, parameters, torch.zeros_like(hidden))
        torch.cuda.current_stream().wait_stream(aside)
        self._gradient = torch.empty_like(hidden)
        expected = hidden.detach().clone()
        del hidden
        torch.cuda.empty_cache()
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.enable_grad():
            with recorded_into(self._forward, pool):
                hidden = _run(body, shape, self._inputs)
            with recorded_into(self._backward, pool):
                torch._foreach_add_(sums, list(torch.autograd.grad(hidden, parameters, self._gradient)))
        self._hidden = hidden.detach()
        if differs(self.forward(inputs), expected):
            raise RuntimeError("what was recorded gives another result")

    def forward(self, inputs: Inputs) -> Tensor:
        """See `Recording`."""
        for mine, given in zip(self._inputs.parts(), inputs.parts(), strict=True):
            mine.copy_(given)
        self._forward.replay()
        return self._hidden

    def backward(self, gradient: Tensor) -> None:
        """See `Recording`."""
        self._gradient.copy_(gradient)
        self._backward.replay()


class _Replayed(torch.autograd.Function):
    """A recording within autograd, which sees one input: a scalar that asks for the gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recording: Recording, inputs: Inputs) -> Tensor:
        ctx.recording = recording
        return recording.forward(inputs).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.recording.backward(*grads)
        return None, None, None
