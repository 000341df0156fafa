"""What is said when memory runs out: what took it, and the cheapest changes with their effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch

from gora.disk import size_text
from gora.errors import GoraError
from gora.estimate.memory import Memory
from gora.estimate.sizes import next_smaller
from gora.methods import METHODS
from gora.planning.workload import Workload, sharing_of, workload_of
from gora.recipe.derived import micro_batch_size, recomputes_activations, training_micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.engine import Engine
from gora.runtime.out_of_memory import is_out_of_memory, release_memory

Stage = Literal["gradients", "training"]
_NAMED, _WORTH_IT = 3, 0.01
# A rank is worth naming where it takes most of the memory, as a slip does.
_MUCH = 0.25
# Bytes of a weight in nf4, with its scales.
_NF4 = 0.516


class OutOfMemory(GoraError):
    """Memory ran out: what took it and what to change."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="out-of-memory")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to need less.

    Attributes:
        setting: as `--set` takes it.
        cost: what it costs.
        saved: bytes of the device, by the estimate.
    """

    setting: str
    cost: str
    saved: int

    def __str__(self) -> str:
        return f"--set {self.setting}: {size_text(self.saved)} less; {self.cost}"


def peak_of(context: RunContext, work: Workload, stage: Stage) -> Memory:
    """The estimate for the settings of a run, whose `auto` is settled."""
    recompute = recomputes_activations(context.recipe.train)
    if stage == "training":
        return work.training(training_micro_batch_size(context.recipe.train), checkpointing=recompute)
    return work.gradients(micro_batch_size(context.recipe), checkpointing=recompute)


def cheapest_changes(context: RunContext, work: Workload, stage: Stage) -> list[Change]:
    """At most three changes that help, the cheapest first: those that keep the result before those that change it."""
    before = peak_of(context, work, stage).total
    changes = (change for change in _changes(context, work, stage, before) if change.saved > _WORTH_IT * before)
    return [change for change, _ in zip(changes, range(_NAMED), strict=False)]


def _changes(context: RunContext, work: Workload, stage: Stage, before: int) -> Iterator[Change]:
    recipe, on_gpu = context.recipe, work.arithmetic.on_gpu
    recompute = recomputes_activations(recipe.train)
    training = stage == "training"
    rows = training_micro_batch_size(recipe.train) if training else micro_batch_size(recipe)

    def saved(other: Workload, size: int = rows, recompute: bool = recompute) -> int:
        memory: Callable[..., Memory] = other.training if training else other.gradients
        return before - memory(size, checkpointing=recompute).total

    if smaller := next_smaller(rows):
        key = "train.micro_batch_size" if training else "gora.micro_batch_size"
        cost = "the same result, more passes" if training else "another plan, of fewer rows"
        yield Change(setting=f"{key}={smaller}", cost=cost, saved=saved(work, smaller))
    if not recompute:
        yield Change(
            setting="train.activation_checkpointing=true",
            cost="the same result, a third more time",
            saved=saved(work, recompute=True),
        )
    if not training and on_gpu and work.offload != "cpu":
        far = replace(work, offload="cpu")
        yield Change(setting="gora.offload=cpu", cost="the same result, sums in host memory", saved=saved(far))
    if training and context.processes > 1 and context.engine.kind == "ddp":
        for name, cost in (("zero2", "states shared out"), ("zero3", "base weights shared out, slower")):
            shared = work.under(sharing_of(Engine.of(name), context.processes))
            yield Change(setting=f"distributed={name}", cost=cost, saved=saved(shared))
    rank = recipe.adapter.rank
    if training and isinstance(rank, int) and rank > 1 and METHODS[recipe.adapter.method].saved_as == "adapter":
        fewer = replace(work, trained=work.trained // 2, rank=work.rank / 2)
        if (gain := saved(fewer)) > _MUCH * before:
            yield Change(setting=f"adapter.rank={rank // 2}", cost="half as many values are trained", saved=gain)
    longest = work.lengths[0]
    if context.inputs.of_text:
        shorter = replace(work, lengths=tuple(min(length, longest // 2) for length in work.lengths))
        yield Change(setting=f"data.max_length={longest // 2}", cost="cuts the longest rows", saved=saved(shorter))
    if on_gpu and recipe.model.quantization is None and recipe.model.head == "language":
        width = work.arithmetic.weight_width
        packed = replace(work, weights=work.weights - round(work.shape.linear * (width - _NF4)))
        yield Change(setting="model.quantization=nf4", cost="a base in 4 bits, slower", saved=saved(packed))


def explained(
    context: RunContext, error: BaseException, stage: Stage, *, where: str = "", kept: str = ""
) -> OutOfMemory:
    """The error that ends the command.

    Args:
        context: the run, whose `auto` is settled.
        error: what a library said.
        stage: what was being done.
        where: the step or micro-batch, in words.
        kept: what lies on disk, and how to continue from it.
    """
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    doing = "the gradient pass" if stage == "gradients" else "training"
    lines = [f"Out of memory in {doing}{f', {where}' if where else ''}: {first_line}"]
    lines.append(_in_use(context.device))
    try:
        work = workload_of(context)
        memory = peak_of(context, work, stage)
        lines.append(f"By the estimate: {parts_text(memory)}")
        if changes := cheapest_changes(context, work, stage):
            lines += ["What to change, the cheapest first:", *(f"  - {change}" for change in changes)]
    except Exception as other:  # the reason counts, with or without advice
        lines.append(f"There is no estimate ({type(other).__name__}: {other}).")
    return OutOfMemory("\n".join([*lines, *([kept] if kept else [])]))


@contextmanager
def explaining_memory(context: RunContext, stage: Stage, where: str) -> Iterator[None]:
    """Inside the block, running out of memory is explained, unless it has been already.

    Raises:
        OutOfMemory: as `explained`.
    """
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    release_memory()
    raise explained(context, failure, stage, where=where)


def parts_text(memory: Memory) -> str:
    """`weights 16.06 GB, activations 5.50 GB, ...: 24.10 GB`, the largest first."""
    parts = sorted(memory.parts.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {size_text(size)}" for name, size in parts if size >= 10**5)
    host = f"; {size_text(memory.host)} of host memory" if memory.host else ""
    return f"{named}: {size_text(memory.total)}{host}"


def _in_use(device: torch.device) -> str:
    if device.type != "cuda":
        memory = psutil.virtual_memory()
        return f"{size_text(memory.available)} of {size_text(memory.total)} host memory are free."
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    return (
        f"{device} has {size_text(total)}: {size_text(torch.cuda.memory_allocated(device))} are allocated here now, "
        f"{size_text(torch.cuda.max_memory_allocated(device))} were at most, {size_text(own)} are reserved, and "
        f"{size_text(max(0, total - free - own))} belong to others."
    )
