"""The base model of a run, and the adapter that the recipe's method puts round it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gora.adapters.load import load_adapter
from gora.adapters.new_tokens import train_tokens
from gora.errors import GoraError, InputError
from gora.files import delete, publish
from gora.methods import METHODS, AdapterSettings, Method, Wrapping
from gora.methods.base import adapted_layers, differences, factors_of, some
from gora.models.experts import FusedExperts, Target
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.load import load_model
from gora.models.new_tokens import without_new_rows
from gora.models.sharding import gather
from gora.models.source import find_model
from gora.models.targets import whole_shape
from gora.models.tokenizer import embeddings_of
from gora.models.weight_files import WeightsNote
from gora.plan import Factors, Plan, identity_differences, read_factors
from gora.planning.gradient_pass import collect_gradients
from gora.planning.micro_batches import MicroBatches
from gora.recipe.derived import reference_rank
from gora.runs.base_model import identify, load_base_model
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.loss import finite_loss
from gora.runs.targets import settle_targets
from gora.runtime.console import output
from gora.runtime.phases import phases
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


@phases.within("adapter")
def wrap_model(context: RunContext, plan: Plan | None, *, steps: int, resumed: bool) -> Wrapped:
    """Load the base model and put the method's adapter round it.

    Args:
        context: rows and base model; its folder holds the plan, and what a resumed run began with.
        plan: of methods that need one.
        steps: optimizer steps of the run.
        resumed: whether training resumes from a checkpoint.

    Raises:
        InputError: the plan belongs to another model or was made from other rows.
    """
    model = load_base_model(context)
    targets = settle_targets(context, model)
    if plan is not None:
        _refuse_stranger(context, model, targets, plan)
    method = METHODS[context.recipe.adapter.method]
    original = _original(context, model)
    losses = _loss(model, context, "base", "the base model")
    torch.manual_seed(context.recipe.seed)
    wrapped = method.wrap(model, _wrapping(context, model, targets, plan, method, steps, resumed))
    if context.new_tokens and isinstance(wrapped, PeftModel):
        train_tokens(wrapped, context.new_tokens)
    _check_adapted(wrapped, method, plan, targets)
    trainable = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    output.say(f"adapter   {context.recipe.adapter.method}, {trainable:,} trainable parameters")
    untouched = not method.moves_weights and not context.new_tokens and isinstance(wrapped, PeftModel)
    frozen = original if untouched else fingerprint(wrapped, context.world)
    initial = factors_of(wrapped) if method.moves_weights and isinstance(wrapped, PeftModel) else None
    if initial:
        output.say("base      a part of the weights is moved into the adapter, which is saved as one of twice the rank")
    losses |= _loss(wrapped, context, "initial", "the model with its initial adapter")
    if losses:
        with_each = f"{losses['base']:.4f} with the base model, {losses['initial']:.4f} with the initial adapter"
        output.say(f"loss      {with_each}, on {len(context.data.eval or ()):,} evaluation rows")
    return Wrapped(model=wrapped, original=original, frozen=frozen, initial=initial, trainable=trainable, losses=losses)


def _original(context: RunContext, model: PreTrainedModel) -> str:
    """Fingerprint of the base as it lies in the checkpoint, without room for new tokens."""
    if not context.new_tokens:
        return fingerprint(model, context.world)
    cut = without_new_rows(model, embeddings_of(context.source.config))
    return context.world.from_main(
        lambda: weights_fingerprint((name, cut(name, weight)) for name, weight in base_weights(model))
    )


def _check_adapted(wrapped: nn.Module, method: Method, plan: Plan | None, targets: Mapping[str, Target]) -> None:
    """What PEFT has adapted is what was printed, whatever the method; some give layers no rank, which is told."""
    if not isinstance(wrapped, PeftModel):
        return
    adapted = set(adapted_layers(wrapped))
    wanted = list(targets) if plan is None else [module.name for module in plan.adapted]
    if method.may_leave_out and (without := [name for name in wanted if name not in adapted]):
        output.say(f"left out  {len(without)} of {len(wanted)} layers got no rank and no adapter: {some(without)}")
        wanted = [name for name in wanted if name in adapted]
    if wrong := differences(wanted, adapted):
        raise GoraError("PEFT has adapted other layers than the targets:\n" + "\n".join(f"  - {w}" for w in wrong))


def fingerprint(model: nn.Module, world: World) -> str:
    """Fingerprint of all frozen base weights, taken by process 0; the others hand it their shares."""
    weights = ((name, gather(weight)) for name, weight in base_weights(model) if not weight.requires_grad)
    if world.main:
        return world.from_main(lambda: weights_fingerprint(weights))
    for _ in weights:
        pass
    return world.from_main(str)


def _wrapping(
    context: RunContext,
    model: PreTrainedModel,
    targets: Mapping[str, Target],
    plan: Plan | None,
    method: Method,
    steps: int,
    resumed: bool,
) -> Wrapping:
    settings, folder = context.recipe.adapter, context.folder

    def gradients() -> Callable[[str], Tensor]:
        identity = identify(context, model)
        collected = collect_gradients(context, model, targets, identity, low_memory=False)
        if context.world.main:
            delete(folder.pass_checkpoint)
        return collected.statistics.mean  # type: ignore[union-attr]

    batches = MicroBatches(context)
    return Wrapping(
        targets={name: target for name, target in targets.items() if isinstance(target, nn.Module)},
        experts=tuple(name for name, target in targets.items() if isinstance(target, FusedExperts)),
        settings=AdapterSettings(
            rank=reference_rank(settings), alpha=settings.alpha, dropout=settings.dropout, dora=settings.dora
        ),
        steps=steps,
        plan=plan,
        factors=read_factors(folder.plan, plan) if plan else {},
        gradients=gradients,
        batches=lambda: (batches[index] for index in range(batches.steps)),
        initial=_read_initial(folder) if method.moves_weights and resumed else None,
    )


def _refuse_stranger(context: RunContext, model: PreTrainedModel, targets: Mapping[str, Target], plan: Plan) -> None:
    advice = "Make it again with `gora precompute --overwrite`."
    shapes = {name: whole_shape(target) for name, target in targets.items()}
    changed = context.base.changes_since(WeightsNote(fingerprint=plan.model.weights, tensors=plan.model.tensors))
    if differences := identity_differences(plan, identify(context, model), shapes, changed=changed):
        raise InputError(f"{context.folder.plan} does not belong to this model. {advice}", differences)
    if plan.data.fingerprint != context.data.fingerprint:
        raise InputError(
            f"{context.folder.plan} was made from other training rows than these. {advice}",
            [f"data: SHA-256 {plan.data.fingerprint[:12]} in the plan, {context.data.fingerprint[:12]} now"],
        )


def _loss(model: nn.Module, context: RunContext, name: str, what: str) -> dict[str, float]:
    if not context.data.eval:
        return {}
    with output.terminal.status("evaluating"):
        return {name: finite_loss(model, context, what)}


def load_trained(context: RunContext, trained: Path) -> nn.Module:
    """What a run has trained, for its last evaluation: the base with the adapter round it, or the model itself."""
    if trained == context.folder.adapter:
        return load_adapter(load_base_model(context), trained)
    section = context.recipe.model.model_copy(update={"name": str(trained), "revision": None})
    source = find_model(section, labels=context.recipe.data.choices, trust_remote_code=context.trust_remote_code)
    model = load_model(section, source, context.device, seed=context.recipe.seed)
    context.inputs.fit(model)
    return model


def keep_initial(folder: RunFolder, initial: Factors) -> None:
    """Write down what a run began with, for the time when it is resumed."""
    pairs = [
        (f"{name}.lora_{part}", value) for name, pair in initial.items() for part, value in zip("AB", pair, strict=True)
    ]
    with publish(folder.initial, sum(value.nbytes for _, value in pairs)) as aside:
        save_file(dict(pairs), aside)


def _read_initial(folder: RunFolder) -> Factors:
    if not folder.initial.exists():
        raise InputError(f"{folder.initial} is missing, without which the run cannot be resumed. Use --overwrite.")
    tensors = load_file(folder.initial)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]) for name in names}
