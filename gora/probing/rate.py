"""`train.learning_rate: auto`: a range test and short trials with the very adapters and rows, before training."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gora.core.learning_rate import COMMON_RATES, rate_below, rate_of_trials, rate_under_new_head
from gora.errors import GoraError
from gora.methods import METHODS
from gora.plan import Decision, add_decision
from gora.probing import range_test as ranging
from gora.probing import trials
from gora.probing.rehearsal import Rehearsal, rehearsing, rows_to_rehearse
from gora.recipe.derived import training_micro_batch_size
from gora.recipe.origins import Origin
from gora.runs.context import RunContext
from gora.runs.decisions import RATE, write_decision
from gora.runtime.console import output

_MICRO_BATCHES, _SHARE = 60, 0.03
"""What may be spent: the rows of so many micro-batches, or this share of the run's if that is more."""
_PASSES = 4 / 3
"""Of a step of the range test, with the forward pass before it, over that of training."""
_RANGE_SHARE, _RANGE_ROWS, _RANGE_ROWS_ALONE = 0.25, 4, 8
"""Share of that for a range test before trials, most rows of its steps, and most where no trials follow."""


def settle_rate(context: RunContext, model: nn.Module, lr_ratio: float, *, steps: int) -> RunContext:
    """Put a rate in the place of `auto`, the same in all processes, and write what it rests on.

    Args:
        context: the run.
        model: what is to be trained, at its start; it is left as it was.
        lr_ratio: rate of B over that of A.
        steps: optimizer steps of the run.

    Raises:
        GoraError: the loss never rises, so that nothing says how far to go.
    """
    if context.recipe.train.learning_rate != "auto":
        return context
    told = context.world.from_main(lambda: _as_json(decide(context, model, lr_ratio, steps)))
    if told is None:
        raise GoraError(
            f"train.learning_rate: auto: in {ranging.STEPS} steps the loss rose at no rate, so that no rate follows "
            "from it. Set train.learning_rate.",
            code="no-learning-rate",
        )
    decision = Decision.model_validate(told)
    output.say(f"rate      train.learning_rate: {decision.value:g} (auto): {decision.why}")
    if context.world.main:
        write_decision(context.folder, RATE, decision)
        if context.folder.plan.exists():
            add_decision(context.folder.plan, RATE, decision)
    context.world.barrier()
    return context.with_settings({RATE: decision.value}, origins={RATE: Origin("measured", decision.why)})


def _as_json(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else decision.model_dump(mode="json")


def decide(context: RunContext, model: nn.Module, lr_ratio: float, steps: int) -> Decision | None:
    """The rate, with what it rests on; None where the loss rose at no rate.

    Args:
        context: the run.
        model: what is to be trained, at its start; it is left as it was.
        lr_ratio: rate of B over that of A.
        steps: optimizer steps of the run.
    """
    rows, head = _rows_to_spend(context, steps), context.recipe.model.head
    size = min(trials.ROWS, context.recipe.train.batch_size)
    trial_steps = min(trials.STEPS, int(rows * (1 - _RANGE_SHARE)) // (size * trials.MOST))
    new_head = head in COMMON_RATES
    tries = trial_steps >= trials.FEWEST and not new_head
    whole_weights = METHODS[context.recipe.adapter.method].saved_as == "model"
    with rehearsing(context, model, lr_ratio) as rehearsal:
        found = ranging.range_test(
            rehearsal,
            _batches(context, ranging.STEPS, _rows_of_range_test(context, rows, alone=not tries), turn=1),
            whole_weights=whole_weights,
        )
        if new_head:
            rate, told = _under_new_head(found.limit, None if whole_weights else COMMON_RATES[head], lr_ratio)
        elif found.limit is None:
            return None
        elif tries:
            rate, told = _of_trials(rehearsal, found, _batches(context, trial_steps, size, turn=2))
        else:
            rate, told = rate_below(found.limit), ""
    if rate is None:
        return None
    return Decision(value=float(f"{rate:.1e}"), origin="measured", why=_seen(found) + told, curve=found.curve)


def _seen(found: ranging.RangeTest) -> str:
    steps = len(found.losses)
    if found.limit is None:
        return f"with a rising rate the loss was above its start at none, in {steps} steps"
    return f"with a rising rate the loss was above its start from {found.limit:.2g} on, after {steps} steps"


def _of_trials(rehearsal: Rehearsal, found: ranging.RangeTest, batches: list[list[int]]) -> tuple[float, str]:
    """What trials around the first guess say, and in words."""
    assert found.limit is not None
    start = sum(found.before) / len(found.before)
    rates, ends = trials.try_around(rehearsal, rate_below(found.limit), batches, start=start)
    if min(ends) >= trials.APART * start:
        output.warn(
            f"train.learning_rate: auto: training fell apart in all trials, also with a rate of {rates[0]:.2g}; what "
            "is taken is a guess. Look at the loss of the first steps, or set train.learning_rate."
        )
    words = ", ".join(f"{end:.3f} at {tried:.2g}" for tried, end in zip(rates, ends, strict=True))
    return rate_of_trials(rates, ends, start), f"; {len(batches)} steps, annealed, ended at a loss of {words}"


def _under_new_head(limit: float | None, common: float | None, lr_ratio: float) -> tuple[float | None, str]:
    """What a head that is noise is trained with, and in words."""
    rate, told = rate_under_new_head(limit, common, lr_ratio), "; the head begins as noise"
    if common is None or rate is None:
        return rate, told
    told += f", and adapters under such a head commonly take {common:g}"
    if lr_ratio != 1.0:
        told += f", here over the square root of {lr_ratio:g}, B's rate over A's"
    return rate, told + (", which is too near that limit" if rate < common / math.sqrt(lr_ratio) else "")


def _rows_to_spend(context: RunContext, steps: int) -> int:
    """Rows that may go forward and backward, while the other processes wait."""
    train = context.recipe.train
    return int(
        max(_MICRO_BATCHES * training_micro_batch_size(train), _SHARE * steps * train.batch_size / context.world.size)
    )


def _rows_of_range_test(context: RunContext, rows: int, *, alone: bool) -> int:
    most, share = (_RANGE_ROWS_ALONE, 1.0) if alone else (_RANGE_ROWS, _RANGE_SHARE)
    room = training_micro_batch_size(context.recipe.train)
    return max(1, min(most, room, int(rows * share / (ranging.STEPS * _PASSES))))


def _batches(context: RunContext, count: int, size: int, *, turn: int) -> list[list[int]]:
    size = min(size, len(context.data.train))
    rows = rows_to_rehearse(context, count * size, turn=turn)
    return [rows[first : first + size] for first in range(0, len(rows), size)]
