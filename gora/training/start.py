"""The base model of a run, and the adapter that the recipe's method puts round it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gora.errors import InputError
from gora.files import publish
from gora.methods import METHODS, AdapterSettings, Method, Wrapping
from gora.methods.base import factors_of
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.sharding import gather
from gora.models.targets import weight_shape
from gora.plan import Factors, Plan, identity_differences, read_factors
from gora.planning.gradient_pass import collect_gradients
from gora.planning.micro_batches import MicroBatches
from gora.runs.folder import RunFolder
from gora.runs.loss import evaluate_loss
from gora.runs.setup import Setup
from gora.runtime.console import output
from gora.runtime.world import World


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """What training starts from.

    Attributes:
        model: with the adapter, or the base itself for full fine-tuning.
        original: fingerprint of the base weights as they were loaded.
        frozen: fingerprint of the weights that training must not change.
        initial: A and B at the start, of a method that has moved a part of the base weights into them.
        trainable: how many parameters are trained.
        losses: evaluation loss of the `base` model and with the `initial` adapter; empty without rows.
    """

    model: PreTrainedModel | PeftModel
    original: str
    frozen: str
    initial: Factors | None
    trainable: int
    losses: dict[str, float]


def wrap_model(setup: Setup, folder: RunFolder, plan: Plan | None, *, steps: int, resumed: bool) -> Wrapped:
    """Load the base model and put the method's adapter round it.

    Args:
        setup: rows and base model.
        folder: holds the plan, and what a resumed run began with.
        plan: of methods that need one.
        steps: optimizer steps of the run.
        resumed: whether training goes on from a checkpoint.

    Raises:
        InputError: the plan belongs to another model.
    """
    model = setup.load_model()
    targets = setup.find_targets(model)
    if plan is not None:
        _refuse_stranger(setup, folder, model, targets, plan)
    method = METHODS[setup.recipe.adapter.method]
    original = fingerprint(model, setup.world)
    losses = _loss(model, setup, "base")
    torch.manual_seed(setup.recipe.seed)
    wrapped = method.wrap(model, _wrapping(setup, folder, model, targets, plan, method, steps, resumed))
    trainable = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    output.say(f"adapter   {setup.recipe.adapter.method}, {trainable:,} trainable parameters")
    untouched = not method.moves_weights and isinstance(wrapped, PeftModel)
    frozen = original if untouched else fingerprint(wrapped, setup.world)
    initial = factors_of(wrapped) if method.moves_weights and isinstance(wrapped, PeftModel) else None
    if initial:
        output.say("base      a part of the weights is moved into the adapter, which is saved as one of twice the rank")
    losses |= _loss(wrapped, setup, "initial")
    if losses:
        with_each = f"{losses['base']:.4f} with the base model, {losses['initial']:.4f} with the initial adapter"
        output.say(f"loss      {with_each}, on {len(setup.data.eval or ()):,} evaluation rows")
    return Wrapped(model=wrapped, original=original, frozen=frozen, initial=initial, trainable=trainable, losses=losses)


def fingerprint(model: nn.Module, world: World) -> str:
    """Fingerprint of all frozen base weights, taken by process 0; the others hand it their shares."""
    weights = ((name, gather(weight)) for name, weight in base_weights(model) if not weight.requires_grad)
    if world.main:
        return world.from_main(lambda: weights_fingerprint(weights))
    for _ in weights:
        pass
    return world.from_main(str)


def _wrapping(
    setup: Setup,
    folder: RunFolder,
    model: PreTrainedModel,
    targets: Mapping[str, nn.Module],
    plan: Plan | None,
    method: Method,
    steps: int,
    resumed: bool,
) -> Wrapping:
    settings = setup.recipe.adapter

    def gradients() -> Callable[[str], Tensor]:
        identity = setup.identify(model, targets)
        collected = collect_gradients(setup, folder, model, targets, identity, low_memory=False)
        if setup.world.main:
            folder.drop_pass_checkpoint()
        return collected.statistics.mean  # type: ignore[union-attr]

    batches = MicroBatches(setup)
    return Wrapping(
        targets=targets,
        settings=AdapterSettings(
            rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout, dora=settings.dora
        ),
        steps=steps,
        plan=plan,
        factors=read_factors(folder.plan, plan) if plan else {},
        gradients=gradients,
        batches=lambda: (batches[index] for index in range(batches.steps)),
        initial=_read_initial(folder) if method.moves_weights and resumed else None,
    )


def _refuse_stranger(
    setup: Setup, folder: RunFolder, model: PreTrainedModel, targets: Mapping[str, nn.Module], plan: Plan
) -> None:
    shapes = {name: weight_shape(module) for name, module in targets.items()}
    if differences := identity_differences(plan, setup.identify(model, targets), shapes):
        advice = "Make it again with `gora precompute --overwrite`."
        raise InputError(f"{folder.plan} does not belong to this model. {advice}", differences)
    if plan.data.fingerprint != setup.data.fingerprint:
        output.warn("the plan was made from other training rows than these.")


def _loss(model: nn.Module, setup: Setup, name: str) -> dict[str, float]:
    if not setup.data.eval:
        return {}
    with output.terminal.status("evaluating"):
        return {name: evaluate_loss(model, setup)}


def keep_initial(folder: RunFolder, initial: Factors) -> None:
    """Write down what a run began with, for the time when it is resumed."""
    pairs = [
        (f"{name}.lora_{part}", value) for name, pair in initial.items() for part, value in zip("AB", pair, strict=True)
    ]
    with publish(folder.initial) as aside:
        save_file(dict(pairs), aside)


def _read_initial(folder: RunFolder) -> Factors:
    if not folder.initial.exists():
        raise InputError(f"{folder.initial} is missing, without which the run cannot be resumed. Use --overwrite.")
    tensors = load_file(folder.initial)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]) for name in names}
