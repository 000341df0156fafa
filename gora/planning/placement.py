"""Where the gradient sums of a run live, and which process owns which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from gora.disk import size_text
from gora.gradients.attach import Attachment
from gora.gradients.buffered import micro_batches_to_buffer
from gora.gradients.placement import Operands, place, refuse_what_cannot_fit, sum_bytes
from gora.gradients.probe import Probe
from gora.gradients.sampled import SampledStatistics
from gora.gradients.sharded import ShardedSums, assign_owners
from gora.gradients.sums import DeviceSums, Shape, Sums
from gora.models.experts import Matrix, matrices_of
from gora.models.load import empty_model
from gora.models.quantization import weight_bytes
from gora.models.targets import weight_of, weight_shape
from gora.planning.micro_batches import MicroBatches
from gora.recipe.derived import rank_bounds
from gora.runs.context import RunContext
from gora.runtime.console import output

SAMPLED_SHARE = 1 / 8
# Several processes may fill half of the free host memory with whole sums; above that each keeps its share only.
_HOST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class SumsPlacement:
    """Sums of zero.

    Attributes:
        sums: where this process adds to.
        owners: the process that answers for each sum in the end.
        facts: bytes in each place, for `results.json`.
        sharded: whether contributions go to the owners at once, so that no process ever holds whole sums.
    """

    sums: Sums
    owners: Mapping[str, int]
    sharded: bool
    facts: dict[str, Any]


def check_memory(context: RunContext, low_memory: bool) -> None:
    """Compare what weights and sums need with what there is, on an empty model, before anything is loaded.

    Raises:
        InputError: it cannot fit.
    """
    model = empty_model(context.source)
    targets = matrices_of(context.chosen.of(model))
    sums = sum_bytes({name: weight_shape(target) for name, target in targets.items()})
    if low_memory:
        sums = round(sums * SAMPLED_SHARE)
    elif context.recipe.gora.offload != "none":
        sums //= context.world.size
    # An engine that shares out the weights does so once each process has loaded all of them.
    weights = weight_bytes(model, context.recipe.model, context.device)
    on_gpu = context.device.type == "cuda"
    estimate = refuse_what_cannot_fit(
        context.recipe.gora.offload,
        weights,
        sums,
        device_bytes=torch.cuda.get_device_properties(context.device).total_memory if on_gpu else None,
        host_bytes=psutil.virtual_memory().available // context.world.local_size,
    )
    output.say(f"memory    {estimate}" + (", at least, in each process" if context.world.size > 1 else ""))


def make_sampled_sums(context: RunContext, attachment: Attachment, targets: Mapping[str, Matrix]) -> SampledStatistics:
    """What `--low-memory` sums, which is refused before where ranks have no upper bound."""
    largest = rank_bounds(context.recipe.gora, context.recipe.adapter).largest
    assert largest is not None
    output.say(f"sums      projections at rank {largest} and an eighth of the rows, on {context.device}")
    return SampledStatistics(
        _shapes(attachment, targets),
        largest,
        SAMPLED_SHARE,
        context.recipe.seed,
        context.device,
        attachment.keys,
        lambda name: weight_of(targets[name]),
    )


def make_sums(
    context: RunContext,
    attachment: Attachment,
    targets: Mapping[str, Matrix],
    batches: MicroBatches,
    sharded: bool | None = None,
) -> SumsPlacement:
    """Whole sums in every process where memory allows, else a share of them in each.

    Args:
        context: rows, processes and settings.
        attachment: knows which layers share a weight.
        targets: the layers.
        batches: the micro-batches.
        sharded: what is the case already, in a pass that is taken up again.
    """
    shapes = _shapes(attachment, targets)
    owners = assign_owners(shapes, context.world.size)
    free = _Free(context, attachment, batches)
    operands = Operands(batches.most_tokens, 2 if context.precision == "bf16" else 4)
    offload = context.recipe.gora.offload
    if not (context.world.any(_has_to_share(context, shapes, offload, free)) if sharded is None else sharded):
        placement = place(offload, shapes, context.device, operands, free)
        each = f", in each of {context.world.size} processes" if context.world.size > 1 else ""
        output.say(f"sums      {placement.text(context.device)}{each}")
        sums = placement.make(context.device)
        return SumsPlacement(sums=sums, owners=owners, sharded=False, facts=placement.facts())
    mine = {key: shape for key, shape in shapes.items() if owners[key] == context.world.index}
    together, held = _held_for_owners(context, shapes, operands, free)
    placement = place(offload, mine, context.device, operands, lambda: free() - held)
    whole = size_text(sum_bytes(shapes))
    output.say(
        f"sums      {placement.text(context.device)}, a share of {whole}, in each of {context.world.size} processes"
    )
    own = placement.make(context.device) if mine else DeviceSums({}, context.device)
    sums = ShardedSums(own, shapes, owners, context.world, context.device, together)
    return SumsPlacement(
        sums=sums, owners=owners, sharded=True, facts={**placement.facts(), "whole_bytes": sum_bytes(shapes)}
    )


def _held_for_owners(
    context: RunContext, shapes: Mapping[str, Shape], operands: Operands, free: Callable[[], int]
) -> tuple[int, int]:
    """How many micro-batches go to the owners at once, and the bytes that wait to be sent; all processes agree."""
    each = operands.tokens * operands.width * sum(map(sum, shapes.values()))
    largest = max(sum_bytes({key: shape}) for key, shape in shapes.items())
    if context.device.type == "cpu":
        return 1, each + largest
    together = micro_batches_to_buffer(operands.tokens)
    while together > 1 and together * each + largest > free():
        together //= 2
    # Memory differs from process to process, but all of them have to send at the same time.
    together = min(context.world.gather(together))
    return together, together * each + largest


class _Free:
    """Bytes of the GPU that the longest micro-batch leaves free; measured once, by running it."""

    def __init__(self, context: RunContext, attachment: Attachment, batches: MicroBatches) -> None:
        self._context, self._attachment, self._batches = context, attachment, batches
        self._bytes: int | None = None

    def __call__(self) -> int:
        if self._bytes is None:
            self._bytes = self._measure()
        return self._bytes

    def _measure(self) -> int:
        device = self._context.device
        torch.cuda.reset_peak_memory_stats(device)
        self._attachment.receiver = Probe(device)
        with self._attachment.attached():
            self._context.loss_of(self._attachment.model)(self._batches.heaviest()).sum().backward()
        peak = torch.cuda.max_memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        torch.cuda.empty_cache()
        return total - others - peak


def _has_to_share(context: RunContext, shapes: Mapping[str, Shape], offload: str, free: _Free) -> bool:
    if context.world.size == 1 or offload == "none":
        return False
    if offload == "cpu":
        return True
    if context.device.type == "cuda":
        return bool(place("auto", shapes, context.device, Operands(1, 2), free).on_host)
    available = psutil.virtual_memory().available * _HOST_SHARE
    return context.world.local_size * sum_bytes(shapes) > available


def _shapes(attachment: Attachment, targets: Mapping[str, Matrix]) -> dict[str, Shape]:
    return {attachment.keys[name]: weight_shape(module) for name, module in targets.items()}
