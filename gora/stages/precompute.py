"""The first stage: gradients of the user's own rows become ranks and initial values, in a plan file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from gora import __version__
from gora.core.importance import importance
from gora.core.initial import draw_a, scaling, solve_b
from gora.core.ranks import RankBounds, allocate, allocate_parameters
from gora.data import draw_rows
from gora.errors import GoraError
from gora.files import write_text
from gora.gradients.collect import GradientSums, Step, collect
from gora.models.checkpointing import recomputing_activations
from gora.models.targets import as_out_in, weight_shape
from gora.plan import DataIdentity, Factors, ModelIdentity, ModulePlan, Plan, write_plan
from gora.recipe import dump_recipe
from gora.recipe.schema import AdapterSection, GoraSection, Recipe
from gora.report.ranks import rank_report
from gora.runtime.console import output
from gora.runtime.folder import RunFolder
from gora.runtime.memory import peak_text, reset_peak
from gora.runtime.precision import autocast
from gora.runtime.progress import Meter, clock
from gora.stages.setup import Setup


@dataclass(frozen=True)
class Precomputed:
    """What the stage made."""

    plan: Plan
    path: Path
    seconds: float


def precompute(recipe: Recipe, *, overwrite: bool = False, trust_remote_code: bool = False) -> Precomputed:
    """Collect gradients and write `<output>/plan.safetensors`.

    Args:
        recipe: the recipe.
        overwrite: replace the plan of an earlier run.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the model, the rows or the targets cannot be used, or there is a plan already.
        GoraError: a loss is not finite, or no gradient reaches any target.
    """
    folder = RunFolder(Path(str(recipe.output)))
    if not overwrite:
        folder.refuse_to_replace(folder.plan, how="Add --overwrite to replace it, or give another --set output=FOLDER.")
    start = time.monotonic()
    reset_peak()
    with output.logging_to(folder.log, "precompute"):
        setup = Setup.of(recipe, trust_remote_code=trust_remote_code)
        model = setup.load_model()
        targets = setup.find_targets(model)
        ready = time.monotonic()
        sums, steps = _collect(setup, model, targets)
        collected = time.monotonic()
        identity = setup.identify(model, targets)
        plan, factors = make_plan(recipe, targets, sums, steps, identity, setup.data.fingerprint)
        write_text(folder.recipe, dump_recipe(recipe))
        write_plan(folder.plan, plan, factors)
        done = time.monotonic()
        output.say(rank_report(plan))
        output.say(
            f"timing    {clock(ready - start)} to load, {clock(collected - ready)} for {steps} gradients, "
            f"{clock(done - collected)} for ranks and values; {peak_text()}"
        )
        output.say(f"plan      {folder.plan}")
    return Precomputed(plan, folder.plan, done - start)


def make_plan(
    recipe: Recipe,
    targets: Mapping[str, nn.Module],
    sums: GradientSums,
    steps: int,
    model: ModelIdentity,
    data_fingerprint: str,
) -> tuple[Plan, Factors]:
    """Importance, ranks, A and B of every target, layer by layer.

    Raises:
        GoraError: no gradient reaches any target.
    """
    shapes = [weight_shape(module) for module in targets.values()]
    importances, norms = [], []
    for name, module in targets.items():
        mean = sums.mean(name, steps)
        importances.append(importance(module.weight, mean, recipe.gora.importance))  # type: ignore[arg-type]
        norms.append(mean.norm().item())
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    share_out = allocate_parameters if recipe.gora.budget == "parameters" else allocate
    try:
        ranks = share_out(importances, shapes, recipe.adapter.rank, bounds)
    except ValueError as error:
        raise GoraError(f"No ranks can be chosen: {error}.") from None

    total = sum(importances)
    modules = []
    factors: Factors = {}
    for (name, module), shape, value, norm, rank in zip(
        targets.items(), shapes, importances, norms, ranks, strict=True
    ):
        modules.append(
            ModulePlan(
                name=name,
                shape=shape,
                importance=value,
                advantage=value / total,
                rank=rank,
                scaling=scaling(recipe.adapter.alpha, rank) if rank else 0.0,
                gradient_norm=norm,
            )
        )
        if rank:
            factor_a = draw_a(name, rank, shape[1], recipe.seed)
            gradient = as_out_in(module, sums.mean(name, steps))
            factors[name] = (factor_a, solve_b(gradient, factor_a, recipe.gora.gamma, recipe.adapter.alpha))
    plan = Plan(
        gora_version=__version__,
        model=model,
        data=DataIdentity(fingerprint=data_fingerprint),
        steps=steps,
        micro_batch_size=micro_batch_size(recipe),
        seed=recipe.seed,
        gamma=recipe.gora.gamma,
        alpha=recipe.adapter.alpha,
        reference_rank=recipe.adapter.rank,
        rank_min=bounds.smallest,
        rank_max=bounds.largest,
        importance=recipe.gora.importance,
        budget=recipe.gora.budget,
        modules=tuple(modules),
    )
    return plan, factors


def rank_bounds(settings: GoraSection, adapter: AdapterSection) -> RankBounds:
    """Resolve `auto`: r_min is half the reference rank, r_max four times it."""
    smallest = max(1, adapter.rank // 2) if settings.rank_min == "auto" else settings.rank_min
    if settings.rank_max == "unbounded":
        return RankBounds(smallest, None)
    return RankBounds(smallest, 4 * adapter.rank if settings.rank_max == "auto" else settings.rank_max)


def micro_batch_size(recipe: Recipe) -> int:
    """Rows in one micro-batch of the gradient pass."""
    return recipe.gora.micro_batch_size or recipe.train.micro_batch_size


def micro_batches(setup: Setup) -> Iterator[dict[str, Tensor]]:
    """N micro-batches of training rows, drawn with the seed, on the device."""
    size = micro_batch_size(setup.recipe)
    rows = setup.data.train
    order = draw_rows(len(rows), setup.recipe.gora.steps * size, setup.recipe.seed)
    for start in range(0, len(order), size):
        yield setup.move(setup.collator([rows[index] for index in order[start : start + size]]))


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean loss over the supervised tokens of a micro-batch."""
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def _collect(setup: Setup, model: nn.Module, targets: Mapping[str, nn.Module]) -> tuple[GradientSums, int]:
    settings = setup.recipe.gora
    wanted = settings.steps * micro_batch_size(setup.recipe)
    if wanted > len(setup.data.train):
        output.warn(f"{wanted} rows are asked for, {len(setup.data.train)} are there: some are used more than once.")
    sums = GradientSums(model, targets)

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        with autocast(setup.precision, setup.device):
            return loss_of(model, batch)

    checkpointing = setup.recipe.train.activation_checkpointing
    with Meter(output, "gradients", settings.steps) as meter, recomputing_activations(model, checkpointing):

        def advance(step: Step) -> None:
            meter.advance(step.tokens, f"loss {step.loss:.4f}")

        steps = collect(model, sums, micro_batches(setup), loss, advance)
        output.note(f"{steps} micro-batches, {meter.tokens_per_second:,.0f} tokens/s")
    return sums, steps
