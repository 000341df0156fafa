"""The gradient pass of a recipe: micro-batches are run, their gradients summed, and what is summed kept on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import PassCheckpoint
from gora.gradients.collect import Collection, Pace, Step, refuse_too_many
from gora.gradients.distributed_statistics import DistributedStatistics
from gora.gradients.halves import Projection, at_half, at_power
from gora.gradients.progress import Progress
from gora.gradients.sampled import SampledStatistics
from gora.gradients.sharded import reduce_to_owners
from gora.gradients.statistics import SummedStatistics
from gora.gradients.sums import Sums
from gora.gradients.watch import Gathered, HalfWatch, NoWatch, SettlingWatch, Signal, Watch, signal_of
from gora.models.checkpointing import recomputing_activations
from gora.models.experts import Matrix, Target, matrices_of
from gora.models.targets import weight_of, weight_shape
from gora.plan import ModelIdentity
from gora.planning.checkpoint import pass_checkpoint, saved_as_shards
from gora.planning.decisions import choose_ranks
from gora.planning.micro_batches import MicroBatches
from gora.planning.placement import SumsPlacement, make_sampled_sums, make_sums
from gora.planning.recorded_pass import recorder_of
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runtime.console import output
from gora.runtime.interrupt import stopping_between_steps
from gora.runtime.progress import Meter

Answers = SummedStatistics | SampledStatistics | DistributedStatistics


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a gradient pass leaves.

    Attributes:
        statistics: answers about the mean gradients; the same in every process.
        counted: micro-batches in the mean.
        facts: what was done where and how fast, for `results.json`.
        steps: micro-batches that were run, those included that were left out.
        stopped: why no more were; empty where all were run that were asked for.
        signal: what of the mean gradients is signal and not noise.
        seconds: time of the micro-batches and of the sum over processes, without the trial pass before them.
    """

    statistics: Answers
    counted: int
    seconds: float
    facts: dict[str, Any]
    steps: int
    stopped: str
    signal: Signal


def collect_gradients(
    context: RunContext,
    model: nn.Module,
    targets: Mapping[str, Target],
    identity: ModelIdentity,
    *,
    low_memory: bool,
) -> Collected:
    """Run the micro-batches and sum the gradients of the targets; those of fused experts one by one.

    Raises:
        Interrupted: a signal stopped the pass, and the sums so far were saved.
        GoraError: too many micro-batches hold NaN or infinity.
        InputError: saved sums are of another run.
    """
    batches = MicroBatches(context, model)
    if batches.steps * batches.size > context.data.train.per_epoch:
        asked = f"{batches.steps} micro-batches of {batches.size} rows"
        output.warn(
            f"{asked} are asked for, {context.data.train.per_epoch} rows are there: some are used more than once."
        )
    matrices = matrices_of(targets)
    attachment = Attachment(model, matrices)
    if context.engine.shards_weights and not attachment.all_tapped:
        raise InputError(
            "adapter.targets: a target's weight is also used elsewhere, which cannot be followed while weights are "
            f"sharded ({context.engine.name}). Leave it out (adapter.exclude), or give distributed: ddp."
        )
    with (
        recomputing_activations(model, recomputes_activations(context.recipe.train)),
        stopping_between_steps() as request,
    ):
        sampled = make_sampled_sums(context, attachment, matrices) if low_memory else None
        if sampled is not None:
            placed = SumsPlacement(sums=sampled, owners={}, sharded=False, facts={"kind": "projections"})
        else:
            placed = make_sums(context, attachment, matrices, batches, saved_as_shards(context))
        pace, sharded = _pace(context, batches, placed.sharded), placed.sharded
        gathered = _gathered(context, attachment, placed)
        projection = _projection(context, attachment, matrices)
        watch = _watch(context, gathered, projection, matrices, batches.steps, low_memory=low_memory)
        checkpoint = pass_checkpoint(context, identity, request, pace, sharded=sharded, low_memory=low_memory)
        start = time.monotonic()
        progress, rate = _run(context, attachment, batches, placed.sums, pace, checkpoint, watch)
    signal = Signal() if isinstance(watch, NoWatch) else signal_of(gathered, projection, progress, placed.sums)
    counted, left_out = _all_together(context, progress)
    for index, reason in sorted(left_out.items()):
        output.warn(f"micro-batch {index} is left out: {reason}")
    refuse_too_many(left_out, batches.steps)
    processes = f" in {context.world.size} processes" if context.world.size > 1 else ""
    steps = min(progress.cursor * context.world.size, batches.steps) if progress.stopped else batches.steps
    skipped = f", {len(left_out)} skipped as not finite" if left_out else ""
    speed = f"{rate:,.0f} {context.data.train.unit}/s"
    output.say(f"gradients {counted} micro-batches of {batches.size} rows{processes}{skipped}, {speed}")
    if progress.stopped:
        output.say(f"enough    {progress.stopped}")
    if sampled is not None:
        for key in sampled.keys():  # noqa: SIM118 - a protocol, no dictionary
            total = sampled.read(key).clone()
            context.world.sum_everywhere(total)
            sampled.write(key, total)
        sampled.counted = counted
    statistics = sampled or _statistics(context, attachment, matrices, placed, counted)
    facts = {
        "micro_batches": counted,
        "rows_per_micro_batch": batches.size,
        "skipped": {str(index): reason for index, reason in sorted(left_out.items())},
        "tokens_per_second": rate,
        "unit": context.data.train.unit,
        "sums": placed.facts,
    }
    return Collected(
        statistics=statistics,
        counted=counted,
        seconds=time.monotonic() - start,
        facts=facts,
        steps=steps,
        stopped=progress.stopped,
        signal=signal,
    )


def _run(
    context: RunContext,
    attachment: Attachment,
    batches: MicroBatches,
    sums: Sums,
    pace: Pace,
    checkpoint: PassCheckpoint,
    watch: Watch,
) -> tuple[Progress, float]:
    """Run this process's micro-batches; the rate is that of all processes, in tokens a second."""
    loss_of = context.loss_of(attachment.model)
    with Meter(output, "gradients", len(batches.indices), unit=context.data.train.unit) as meter:

        def on_step(step: Step) -> None:
            meter.advance(batches.tokens(step.index), f"loss {step.loss:.4f}")

        run = Collection(
            attachment=attachment,
            sums=sums,
            batch_of=batches.__getitem__,
            loss_of=loss_of,
            pace=pace,
            checkpoint=checkpoint,
            on_step=on_step,
            rows_of=batches.where,
            watch=watch,
        )
        run.recorder = recorder_of(context, attachment, batches, sums, loss_of)
        if batches.share_passes and pace.rounds == len(batches.indices) and pace.agree is bool:
            run.together, run.ends = batches.together, batches.ends(batches.indices, watch.due)
        progress = run.run()
        return progress, context.world.total(meter.tokens_per_second)


def _pace(context: RunContext, batches: MicroBatches, sharded: bool) -> Pace:
    # What has settled is settled over all processes.
    together = sharded or context.engine.shards_weights or context.recipe.gora.steps == "auto"
    return Pace(
        indices=batches.indices,
        rounds=batches.rounds if together else len(batches.indices),
        total=batches.steps,
        agree=context.world.any if together else bool,
        computes_together=context.engine.shards_weights,
    )


def _gathered(context: RunContext, attachment: Attachment, placed: SumsPlacement) -> Gathered:
    link = context.world if context.world.size > 1 else None
    return Gathered(keys=attachment.keys, owners=placed.owners, link=link, whole=not placed.sharded)


def _projection(context: RunContext, attachment: Attachment, targets: Mapping[str, Matrix]) -> Projection:
    shapes = {attachment.keys[name]: weight_shape(module) for name, module in targets.items()}
    return Projection(shapes, context.recipe.seed, context.device)


def _watch(
    context: RunContext,
    gathered: Gathered,
    projection: Projection,
    targets: Mapping[str, Matrix],
    steps: int,
    *,
    low_memory: bool,
) -> Watch:
    """What looks at the sums on the way; nothing where they are never whole, or of thousands of experts."""
    recipe, processes = context.recipe, context.world.size
    if low_memory or recipe.adapter.experts:
        return NoWatch()
    if recipe.gora.steps != "auto":
        return HalfWatch(projection, lambda rounds: at_half(rounds, processes, steps))
    shapes = {name: weight_shape(module) for name, module in targets.items()}

    kind = recipe.gora.importance
    assert kind != "above-noise", "which the recipe refuses together with steps auto"

    def ranks_of(importances: Mapping[str, float]) -> dict[str, int]:
        ranks = choose_ranks(recipe, [importances[name] for name in shapes], list(shapes.values()))
        return dict(zip(shapes, ranks, strict=True))

    return SettlingWatch(
        HalfWatch(projection, lambda rounds: at_power(rounds, processes, steps)),
        projection,
        gathered,
        lambda name: weight_of(targets[name]),
        kind,
        recipe.gora.settled,
        recipe.gora.tolerance,
        ranks_of,
    )


def _all_together(context: RunContext, progress: Progress) -> tuple[int, dict[int, str]]:
    """Micro-batches in the sums of all processes, and those left out."""
    told = context.world.gather({"counted": progress.counted, "left_out": list(progress.left_out.items())})
    left_out = {index: reason for each in told for index, reason in each["left_out"]}
    return sum(each["counted"] for each in told), left_out


def _statistics(
    context: RunContext, attachment: Attachment, targets: Mapping[str, Matrix], placed: SumsPlacement, counted: int
) -> SummedStatistics | DistributedStatistics:
    def weight(name: str) -> Tensor:
        return weight_of(targets[name])

    own = SummedStatistics(placed.sums, attachment.keys, weight, counted)
    if context.world.size == 1:
        return own
    if not placed.sharded:
        reduce_to_owners(placed.sums, placed.owners, placed.owners, context.world)
    owners = {name: placed.owners[key] for name, key in attachment.keys.items()}
    shapes = {name: weight_shape(module) for name, module in targets.items()}
    return DistributedStatistics(own, shapes, owners, weight, context.world, context.device)
