"""`train.learning_rate: auto`: a range test with the very adapters and rows, before training."""

from __future__ import annotations

from typing import Any

from torch import nn

from gora.core.learning_rate import rate_below
from gora.errors import GoraError
from gora.plan import Decision, add_decision
from gora.probing.range_test import STEPS, range_test
from gora.recipe.origins import Origin
from gora.runs.context import RunContext
from gora.runs.decisions import RATE, write_decision
from gora.runtime.console import output


def settle_rate(context: RunContext, model: nn.Module, lr_ratio: float) -> RunContext:
    """Put a rate in the place of `auto`, the same in all processes, and write what it rests on.

    Args:
        context: the run.
        model: what is to be trained, at its start; it is left as it was.
        lr_ratio: rate of B over that of A.

    Raises:
        GoraError: the loss never rises, so that nothing says how far to go.
    """
    if context.recipe.train.learning_rate != "auto":
        return context
    told = context.world.from_main(lambda: _as_json(_decide(context, model, lr_ratio)))
    if told is None:
        raise GoraError(
            f"train.learning_rate: auto: in {STEPS} steps the loss rose at no rate, so that no rate follows from it. "
            "Set train.learning_rate.",
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


def _decide(context: RunContext, model: nn.Module, lr_ratio: float) -> Decision | None:
    found = range_test(context, model, lr_ratio)
    limit = found.limit
    if limit is None:
        return None
    return Decision(
        value=rate_below(limit),
        origin="measured",
        why=f"with a rising rate the loss was above its start from {limit:.2g} on, after {len(found.losses)} steps",
        curve=found.curve,
    )
