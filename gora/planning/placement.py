"""Where the gradient sums of a run live, and which process owns which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from gora.gradients.attach import Attachment
from gora.gradients.buffered import micro_batches_to_buffer
from gora.gradients.placement import Operands, place, refuse_what_cannot_fit, size_text, sum_bytes
from gora.gradients.probe import Probe
from gora.gradients.sampled import SampledStatistics
from gora.gradients.sharded import ShardedSums, assign_owners
from gora.gradients.sums import DeviceSums, Shape, Sums
from gora.models.load import empty_model, weight_bytes
from gora.models.targets import find_targets, weight_of, weight_shape
from gora.planning.micro_batches import MicroBatches
from gora.recipe.derived import rank_bounds
from gora.runs.setup import Setup
from gora.runtime.console import output

SAMPLED_SHARE = 1 / 8
# Several processes may fill half of the free host memory with whole sums; above that each keeps its share only.
_HOST_SHARE = 0.5


@dataclass(frozen=True)
class SumsPlacement:
    """Sums of zero.

    Attributes:
        sums: where this process adds to.
        owners: the process that answers for each sum in the end.
        shared: whether contributions go to the owners at once, so that no process ever holds whole sums.
    """

    sums: Sums
    owners: Mapping[str, int]
    sharded: bool


def check_memory(setup: Setup, low_memory: bool) -> None:
    """Compare what weights and sums need with what there is, on an empty model, before anything is loaded.

    Raises:
        InputError: it cannot fit.
    """
    model = empty_model(setup.source)
    targets = find_targets(model, setup.recipe.adapter.targets, setup.recipe.adapter.exclude)
    sums = sum_bytes({name: weight_shape(module) for name, module in targets.items()})
    if low_memory:
        sums = round(sums * SAMPLED_SHARE)
    elif setup.recipe.gora.offload != "none":
        sums //= setup.world.size
    # An engine that shares out the weights does so once each process has loaded all of them.
    weights = weight_bytes(model, setup.recipe.model, setup.device)
    on_gpu = setup.device.type == "cuda"
    estimate = refuse_what_cannot_fit(
        setup.recipe.gora.offload,
        weights,
        sums,
        device_bytes=torch.cuda.get_device_properties(setup.device).total_memory if on_gpu else None,
        host_bytes=psutil.virtual_memory().available // setup.world.local_size,
    )
    output.say(f"memory    {estimate}" + (", at least, in each process" if setup.world.size > 1 else ""))


def make_sampled_sums(setup: Setup, attachment: Attachment, targets: Mapping[str, nn.Module]) -> SampledStatistics:
    """What `--low-memory` sums, which is refused before where ranks have no upper bound."""
    largest = rank_bounds(setup.recipe.gora, setup.recipe.adapter).largest
    assert largest is not None
    output.say(f"sums      projections at rank {largest} and an eighth of the rows, on {setup.device}")
    return SampledStatistics(
        _shapes(attachment, targets),
        largest,
        SAMPLED_SHARE,
        setup.recipe.seed,
        setup.device,
        attachment.keys,
        lambda name: weight_of(targets[name]),
    )


def make_sums(
    setup: Setup,
    attachment: Attachment,
    targets: Mapping[str, nn.Module],
    batches: MicroBatches,
    sharded: bool | None = None,
) -> SumsPlacement:
    """Whole sums in every process where memory allows, else a share of them in each.

    Args:
        setup: rows, processes and settings.
        attachment: knows which layers share a weight.
        targets: the layers.
        batches: the micro-batches.
        sharded: what is the case already, in a pass that is taken up again.
    """
    shapes = _shapes(attachment, targets)
    owners = assign_owners(shapes, setup.world.size)
    free = _Free(setup, attachment, batches)
    operands = Operands(batches.most_tokens, 2 if setup.precision == "bf16" else 4)
    wanted = setup.recipe.gora.offload
    offload = "cpu" if setup.engine.offloads and wanted == "auto" else wanted
    if not (setup.world.any(_has_to_share(setup, shapes, offload, free)) if sharded is None else sharded):
        placement = place(offload, shapes, setup.device, operands, free)
        each = f", in each of {setup.world.size} processes" if setup.world.size > 1 else ""
        output.say(f"sums      {placement.text(setup.device)}{each}")
        return SumsPlacement(placement.make(setup.device), owners, sharded=False)
    mine = {key: shape for key, shape in shapes.items() if owners[key] == setup.world.index}
    together, held = _held_for_owners(setup, shapes, operands, free)
    placement = place(offload, mine, setup.device, operands, lambda: free() - held)
    whole = size_text(sum_bytes(shapes))
    output.say(f"sums      {placement.text(setup.device)}, a share of {whole}, in each of {setup.world.size} processes")
    own = placement.make(setup.device) if mine else DeviceSums({}, setup.device)
    return SumsPlacement(ShardedSums(own, shapes, owners, setup.world, setup.device, together), owners, sharded=True)


def _held_for_owners(
    setup: Setup, shapes: Mapping[str, Shape], operands: Operands, free: Callable[[], int]
) -> tuple[int, int]:
    """How many micro-batches go to the owners at once, and the bytes that wait to be sent; all processes agree."""
    each = operands.tokens * operands.width * sum(map(sum, shapes.values()))
    largest = max(sum_bytes({key: shape}) for key, shape in shapes.items())
    if setup.device.type == "cpu":
        return 1, each + largest
    together = micro_batches_to_buffer(operands.tokens)
    while together > 1 and together * each + largest > free():
        together //= 2
    # Memory differs from process to process, but all of them have to send at the same time.
    together = min(setup.world.gather(together))
    return together, together * each + largest


class _Free:
    """Bytes of the GPU that the longest micro-batch leaves free; measured once, by running it."""

    def __init__(self, setup: Setup, attachment: Attachment, batches: MicroBatches) -> None:
        self._setup, self._attachment, self._batches = setup, attachment, batches
        self._bytes: int | None = None

    def __call__(self) -> int:
        if self._bytes is None:
            self._bytes = self._measure()
        return self._bytes

    def _measure(self) -> int:
        device = self._setup.device
        torch.cuda.reset_peak_memory_stats(device)
        self._attachment.receiver = Probe(device)
        with self._attachment.attached():
            self._setup.loss_of(self._attachment.model)(self._batches[self._batches.longest()]).backward()
        peak = torch.cuda.max_memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        torch.cuda.empty_cache()
        return total - others - peak


def _has_to_share(setup: Setup, shapes: Mapping[str, Shape], offload: str, free: _Free) -> bool:
    if setup.world.size == 1 or offload == "none":
        return False
    if offload == "cpu":
        return True
    if setup.device.type == "cuda":
        return bool(place("auto", shapes, setup.device, Operands(1, 2), free).on_host)
    available = psutil.virtual_memory().available * _HOST_SHARE
    return setup.world.local_size * sum_bytes(shapes) > available


def _shapes(attachment: Attachment, targets: Mapping[str, nn.Module]) -> dict[str, Shape]:
    return {attachment.keys[name]: weight_shape(module) for name, module in targets.items()}
