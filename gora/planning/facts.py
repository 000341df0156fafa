"""What a run will do and take, as JSON says it: model, targets, rows, steps, memory, disk."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict
from typing import Any

from gora.estimate.disk import disk_needs
from gora.estimate.memory import Memory
from gora.estimate.sizes import divisors
from gora.methods import METHODS
from gora.models.targets import kind_of
from gora.planning.memory_advice import Stage
from gora.planning.workload import Workload, sharing_of
from gora.recipe import accumulation_steps
from gora.recipe.derived import gradient_steps, micro_batch_size, recomputes_activations, training_micro_batch_size
from gora.runs.context import RunContext
from gora.runtime.engine import NAMES, Engine

_SHARES = {"least": 0, "p50": 50, "p90": 90, "p99": 99}


def model_facts(context: RunContext, work: Workload) -> dict[str, Any]:
    """The base model."""
    recipe = context.recipe
    return {
        "name": recipe.model.name,
        "parameters": work.shape.weights,
        "weight_bytes": work.weights,
        "device": str(context.device),
        "precision": context.precision,
        "attention": work.arithmetic.attention,
        "quantization": recipe.model.quantization,
    }


def target_facts(context: RunContext, work: Workload) -> dict[str, Any]:
    """What is adapted, and how many values that trains."""
    return {
        "method": context.recipe.adapter.method,
        "layers": len(context.chosen.layers),
        "kinds": dict(Counter(map(kind_of, context.chosen.layers))),
        "trainable": work.trained,
        "share": work.trained / work.shape.weights,
    }


def row_facts(context: RunContext) -> dict[str, Any]:
    """What became of the rows, and how long they are."""
    rows, counts = context.data.train, context.data.counts
    lengths = sorted(rows.lengths)
    shares = {name: lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for name, share in _SHARES.items()}
    mixture = rows.mixture
    return {
        **({"per_epoch": mixture.per_epoch, "sources": [asdict(each) for each in mixture.shares]} if mixture else {}),
        "train": asdict(counts.train),
        "eval": asdict(counts.eval) if counts.eval else None,
        "summary": counts.summary(),
        "unit": rows.unit,
        "length": {**shares, "most": lengths[-1], "mean": round(sum(lengths) / len(lengths), 1)},
    }


def pass_facts(context: RunContext) -> dict[str, Any]:
    """The gradient pass, and the micro-batches of training; every `auto` is settled."""
    recipe = context.recipe
    return {
        "batch_size": recipe.train.batch_size,
        "micro_batch_size": training_micro_batch_size(recipe.train),
        "accumulation": accumulation_steps(recipe.train, context.processes),
        "activation_checkpointing": recomputes_activations(recipe.train),
        "gradient_micro_batches": gradient_steps(recipe) if METHODS[recipe.adapter.method].needs_plan else 0,
        "gradient_micro_batch_size": micro_batch_size(recipe),
    }


def peaks(context: RunContext, work: Workload) -> dict[Stage, Memory]:
    """The estimate of each stage that the recipe has."""
    recipe, recompute = context.recipe, recomputes_activations(context.recipe.train)
    training = work.training(training_micro_batch_size(recipe.train), checkpointing=recompute)
    if not METHODS[recipe.adapter.method].needs_plan:
        return {"training": training}
    return {"training": training, "gradients": work.gradients(micro_batch_size(recipe), checkpointing=recompute)}


def memory_facts(context: RunContext, work: Workload) -> dict[str, Any]:
    """The estimate by part, under each engine, and the largest micro-batches."""
    recipe = context.recipe
    rows, recompute = training_micro_batch_size(recipe.train), recomputes_activations(recipe.train)
    sizes = work.training_sizes(context.processes)
    engines = {name: work.under(sharing_of(Engine.of(name), context.processes)) for name in NAMES}
    return {
        "limit": work.limit,
        "longest_row": work.lengths[0],
        "unit": context.data.train.unit,
        "peaks": {stage: _as_json(memory) for stage, memory in peaks(context, work).items()},
        "engines": {name: _as_json(under.training(rows, checkpointing=recompute)) for name, under in engines.items()},
        "largest_micro_batch": {
            "training": work.largest(lambda size: work.training(size, checkpointing=False), sizes),
            "training, recomputing": work.largest(lambda size: work.training(size, checkpointing=True), sizes),
            "gradients": work.largest(
                lambda size: work.gradients(size, checkpointing=recompute), divisors(recipe.train.batch_size)
            ),
        },
    }


def disk_facts(context: RunContext, work: Workload) -> dict[str, Any]:
    """What is free where the run folder lies or will lie, and what is written there."""
    recipe, path = context.recipe, context.folder.path.absolute()
    place = next(each for each in (path, *path.parents) if each.exists())
    needs = disk_needs(
        trained=work.trained,
        targets=sum(rows * columns for rows, columns in work.shape.targets.values()),
        weights=work.shape.weights * work.arithmetic.weight_width,
        has_plan=METHODS[recipe.adapter.method].needs_plan,
        checkpoints=recipe.train.keep_checkpoints + 1 if recipe.train.save_steps else 1,
    )
    return {"place": str(place), "free": shutil.disk_usage(place).free, "certain": needs.certain, **needs.parts}


def _as_json(memory: Memory) -> dict[str, int]:
    return {**memory.parts, "total": memory.total, "host": memory.host}
