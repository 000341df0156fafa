"""The gradient pass of a recipe: which micro-batches, where the sums live, what is kept on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from gora.data import draw_rows
from gora.errors import InputError, Interrupted
from gora.gradients.attach import Attachment
from gora.gradients.collect import Collection, Step
from gora.gradients.fit import Operands, place, refuse_what_cannot_fit
from gora.gradients.keeper import DiskKeeper
from gora.gradients.probe import Probe
from gora.gradients.replay import LONGEST, Replay
from gora.gradients.sampled import SampledStatistics
from gora.gradients.statistics import SummedStatistics
from gora.gradients.sums import DeviceSums, Shape, Sums
from gora.models.checkpointing import recomputing_activations
from gora.models.load import empty_model, weight_bytes
from gora.models.targets import find_targets, weight_of, weight_shape
from gora.plan import ModelIdentity
from gora.runtime.console import output
from gora.runtime.folder import RunFolder
from gora.runtime.interrupt import StopRequest, stopping_between_steps
from gora.runtime.precision import autocast
from gora.runtime.progress import Meter
from gora.stages.planning import micro_batch_size, rank_bounds
from gora.stages.setup import Setup

_SAMPLED_SHARE = 1 / 8


class MicroBatches:
    """The micro-batches of the gradient pass: rows drawn with the seed, the same at every call.

    Args:
        setup: gives rows, seed and sizes.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.size = micro_batch_size(setup.recipe)
        self.steps = setup.recipe.gora.steps
        self._order = draw_rows(len(setup.data.train), self.steps * self.size, setup.recipe.seed)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One micro-batch on the device."""
        rows = self._setup.data.train
        return self._setup.move(self._setup.collator([rows[row] for row in self._rows(index)]))

    def fixed(self, index: int) -> dict[str, Tensor]:
        """One micro-batch padded to the longest of all, without a mask.

        A causal model never looks ahead, so that padding on the right changes nothing for the tokens before it, and
        padding has no label.
        """
        rows = self._setup.data.train
        batch = self._setup.collator([rows[row] for row in self._rows(index)], width=self._width())
        return self._setup.move({key: batch[key] for key in ("input_ids", "labels")})

    def tokens(self, index: int) -> int:
        """Its tokens, padding excluded."""
        return sum(self._setup.data.train.lengths[row] for row in self._rows(index))

    def where(self, index: int) -> str:
        """Where its rows came from."""
        return "rows " + ", ".join(self._setup.data.train.where(row) for row in self._rows(index))

    def longest(self) -> int:
        """The micro-batch that takes most memory: the one with the longest row."""
        lengths = self._setup.data.train.lengths
        return max(range(self.steps), key=lambda index: max(lengths[row] for row in self._rows(index)))

    @property
    def most_tokens(self) -> int:
        """Tokens of a padded micro-batch, padding included."""
        return self.size * self._width()

    def _width(self) -> int:
        return max(self._setup.data.train.lengths[row] for row in self._order)

    def _rows(self, index: int) -> list[int]:
        return self._order[index * self.size : (index + 1) * self.size]


@dataclass(frozen=True)
class Collected:
    """What a gradient pass leaves.

    Attributes:
        statistics: answers about the mean gradients.
        counted: micro-batches in the mean.
        keeper: forgets the partial sums once the plan is written.
    """

    statistics: SummedStatistics | SampledStatistics
    counted: int
    keeper: DiskKeeper


def check_memory(setup: Setup, low_memory: bool) -> None:
    """Compare what weights and sums need with what there is, on an empty model, before anything is loaded.

    Raises:
        InputError: it cannot fit.
    """
    model = empty_model(setup.source)
    targets = find_targets(model, setup.recipe.adapter.targets, setup.recipe.adapter.exclude)
    shapes = {name: weight_shape(module) for name, module in targets.items()}
    if low_memory:
        shapes = {name: (max(1, round(out * _SAMPLED_SHARE)), width) for name, (out, width) in shapes.items()}
    weights = weight_bytes(model, setup.recipe.model, setup.device)
    on_gpu = setup.device.type == "cuda"
    estimate = refuse_what_cannot_fit(
        setup.recipe.gora.offload,
        weights,
        shapes,
        device_bytes=torch.cuda.get_device_properties(setup.device).total_memory if on_gpu else None,
        host_bytes=psutil.virtual_memory().available,
    )
    output.say(f"memory    {estimate}")


def collect_gradients(
    setup: Setup,
    folder: RunFolder,
    model: nn.Module,
    targets: Mapping[str, nn.Module],
    identity: ModelIdentity,
    *,
    low_memory: bool,
) -> Collected:
    """Run the micro-batches and sum the gradients of the targets.

    Raises:
        Interrupted: a signal stopped the pass, and the sums so far were saved.
        GoraError: too many micro-batches hold NaN or infinity.
        InputError: saved sums are of another run.
    """
    batches = MicroBatches(setup)
    if batches.steps * batches.size > len(setup.data.train):
        asked = f"{batches.steps} micro-batches of {batches.size} rows"
        output.warn(f"{asked} are asked for, {len(setup.data.train)} rows are there: some are used more than once.")
    attachment = Attachment(model, targets)
    with (
        recomputing_activations(model, setup.recipe.train.activation_checkpointing),
        stopping_between_steps() as request,
    ):
        statistics = _allocate(setup, attachment, targets, batches, low_memory)
        sums = statistics if isinstance(statistics, SampledStatistics) else statistics.sums
        keeper = _keeper(setup, folder, identity, request, low_memory)
        with Meter(output, "gradients", batches.steps) as meter:

            def on_step(step: Step) -> None:
                meter.advance(batches.tokens(step.index), f"loss {step.loss:.4f}")

            loss_of = _loss_of(setup, model)
            run = Collection(
                attachment,
                sums,
                batches.__getitem__,
                loss_of,
                batches.steps,
                keeper,
                on_step,
                batches.where,
            )
            run.recorder = _recorder(setup, attachment, batches, sums, loss_of)
            progress = run.run()
            rate = meter.tokens_per_second
    for index, reason in progress.left_out.items():
        output.warn(f"micro-batch {index} is left out: {reason}")
    statistics.counted = progress.counted
    output.say(f"gradients {progress.counted} micro-batches of {batches.size} rows, {rate:,.0f} tokens/s")
    return Collected(statistics, progress.counted, keeper)


def _allocate(
    setup: Setup,
    attachment: Attachment,
    targets: Mapping[str, nn.Module],
    batches: MicroBatches,
    low_memory: bool,
) -> SummedStatistics | SampledStatistics:
    shapes: dict[str, Shape] = {attachment.keys[name]: weight_shape(module) for name, module in targets.items()}

    def weight(name: str) -> Tensor:
        return weight_of(targets[name])

    if low_memory:
        largest = rank_bounds(setup.recipe.gora, setup.recipe.adapter).largest
        if largest is None:
            raise InputError("--low-memory sums B at the largest rank: gora.rank_max must not be unbounded.")
        share, seed = _SAMPLED_SHARE, setup.recipe.seed
        output.say(f"sums      projections at rank {largest} and an eighth of the rows, on {setup.device}")
        return SampledStatistics(shapes, largest, share, seed, setup.device, attachment.keys, weight)

    def measure() -> int:
        return _free_beside_activations(setup, attachment, batches)

    operands = Operands(batches.most_tokens, 2 if setup.precision == "bf16" else 4)
    placement = place(setup.recipe.gora.offload, shapes, setup.device, operands, measure)
    output.say(f"sums      {placement.text(setup.device)}")
    return SummedStatistics(placement.allocate(setup.device), attachment.keys, weight)


def _free_beside_activations(setup: Setup, attachment: Attachment, batches: MicroBatches) -> int:
    """Bytes of the GPU that the longest micro-batch leaves free."""
    torch.cuda.reset_peak_memory_stats(setup.device)
    attachment.receiver = Probe(setup.device)
    with attachment.attached():
        _loss_of(setup, attachment.model)(batches[batches.longest()]).backward()
    peak = torch.cuda.max_memory_reserved(setup.device)
    free, total = torch.cuda.mem_get_info(setup.device)
    others = total - free - torch.cuda.memory_reserved(setup.device)
    torch.cuda.empty_cache()
    return total - others - peak


def _loss_of(setup: Setup, model: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        with autocast(setup.precision, setup.device):
            value: Tensor = model(**batch, use_cache=False).loss
        return value

    return loss


def _recorder(
    setup: Setup,
    attachment: Attachment,
    batches: MicroBatches,
    sums: Sums,
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
) -> Callable[[], Callable[[int], Tensor]] | None:
    """How to record the passes of a small micro-batch on a GPU, where that is possible and of use."""
    possible = (
        setup.device.type == "cuda"
        and isinstance(sums, DeviceSums)
        and attachment.all_tapped
        and not setup.source.encoder_decoder
        and not setup.recipe.train.activation_checkpointing
    )
    if not possible or batches.most_tokens > LONGEST:
        return None

    def record() -> Callable[[int], Tensor]:
        _check_padding_changes_nothing(batches, loss_of)
        replay = Replay(attachment, sums, loss_of, batches.fixed(0))
        return lambda index: replay(batches.fixed(index))

    return record


def _check_padding_changes_nothing(batches: MicroBatches, loss_of: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
    with torch.no_grad():
        masked, padded = loss_of(batches[0]).item(), loss_of(batches.fixed(0)).item()
    if not math.isclose(masked, padded, rel_tol=5e-3):
        raise RuntimeError(f"padding changes the loss from {masked} to {padded}")


def _keeper(
    setup: Setup, folder: RunFolder, model: ModelIdentity, request: StopRequest, low_memory: bool
) -> DiskKeeper:
    identity = {
        "model": model.config,
        "weights": model.weights,
        "data": setup.data.fingerprint,
        "steps": setup.recipe.gora.steps,
        "micro_batch_size": micro_batch_size(setup.recipe),
        "seed": setup.recipe.seed,
        "precision": setup.precision,
        "low_memory": low_memory,
    }

    def interrupt(number: int, cursor: int) -> None:
        kept = f"{folder.partial} holds the sums of {cursor} of {setup.recipe.gora.steps} micro-batches"
        raise Interrupted(number, f"{kept}; add --resume to go on from them.")

    return DiskKeeper(folder.partial, identity, lambda: request.number, interrupt)
