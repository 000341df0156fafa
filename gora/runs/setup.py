"""What every stage starts from: the tokenized rows and the base model that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.data import Collator, LabelCollator, PreparedData, named_template, padding_id, prepare
from gora.errors import InputError
from gora.models.encoders import knows_token_types, longest_input
from gora.models.fingerprint import base_weights, config_fingerprint, weights_fingerprint
from gora.models.head import head_modules, settle_padding
from gora.models.load import (
    Source,
    computes_bfloat16_slowly,
    default_device,
    find_model,
    load_model,
    load_tokenizer,
)
from gora.models.targets import find_targets, kind_of
from gora.plan import ModelIdentity
from gora.recipe.schema import Recipe
from gora.runs.ignored_settings import unread_settings
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.precision import Precision, autocast, resolve_precision
from gora.runtime.quiet import quiet_libraries
from gora.runtime.world import World, join


def begin(recipe: Recipe) -> tuple[World, Engine]:
    """Join the other processes of the run, if there are any, before anything is looked at or written.

    Raises:
        InputError: there is no such engine, or it cannot run here.
    """
    engine = Engine.of(recipe.distributed)
    if engine.kind == "deepspeed" and find_spec("deepspeed") is None:
        raise InputError(
            f"distributed: {engine.name} needs DeepSpeed, which is not installed. Install it (pip install deepspeed), "
            "or give --set distributed=ddp."
        )
    if engine.shards_weights and recipe.model.quantization:
        raise InputError(
            f"distributed: {engine.name} shares out base weights, which {recipe.model.quantization} ones cannot be. "
            "Give ddp or zero2, or model.quantization: null."
        )
    world = join(alone_too=engine.kind != "ddp")
    if not world.main:
        output.mute()
    return world, engine


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A recipe with its rows ready, before the model is loaded."""

    recipe: Recipe
    world: World
    engine: Engine
    device: torch.device
    precision: Precision
    source: Source
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    collator: Collator | LabelCollator

    @classmethod
    def of(cls, recipe: Recipe, *, alone: bool = False, trust_remote_code: bool = False) -> Setup:
        """Find the model, load its tokenizer, read and tokenize the rows.

        Args:
            recipe: the recipe.
            alone: this process works by itself, while others wait for something else.
            trust_remote_code: let the model run Python code of its own.

        Raises:
            InputError: the model, the tokenizer or the rows cannot be used.
        """
        quiet_libraries()
        world, engine = begin(recipe)
        world = World() if alone else world
        device = default_device()
        precision = resolve_precision(recipe.train.precision, device)
        if unread := unread_settings(engine, recipe, world, precision):
            output.warn_once(f"{engine.name}: only the engine is taken from this file, not {', '.join(unread)}.")
        source = find_model(recipe.model, labels=recipe.data.choices, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(recipe.model, source)
        with output.terminal.status("reading and tokenizing rows"):
            data = prepare(
                recipe.data,
                tokenizer,
                recipe.seed,
                encoder_decoder=source.encoder_decoder,
                say=output.warn,
                head=source.head,
            )
        if recipe.data.chat_template is not None:
            # Whoever uses the tokenizer that is saved with the adapter meets the template that was trained.
            tokenizer.chat_template = named_template(recipe.data.chat_template, tokenizer)[0]
        output.say(f"model     {recipe.model.name}")
        output.say(f"rows      {data.counts.summary()}")
        collator = _collator(tokenizer, source)
        # From here on process 0 may change the run folder, which all have looked at.
        world.barrier()
        return cls(
            recipe=recipe,
            world=world,
            engine=engine,
            device=device,
            precision=precision,
            source=source,
            tokenizer=tokenizer,
            data=data,
            collator=collator,
        )

    def load_model(self) -> PreTrainedModel:
        """Load the base model, frozen; what it lacks of a classifier's head is the same at every call."""
        with output.terminal.status("loading the model"):
            model = load_model(self.recipe.model, self.source, self.device, seed=self.recipe.seed)
        settle_padding(model, self.collator.pad_token_id)
        self._refuse_what_the_model_cannot_take(model)
        dtype = str(model.dtype).removeprefix("torch.")
        kernel = model.config._attn_implementation
        size = f"{model.num_parameters():,} parameters in {dtype} on {self.device}"
        output.say(f"loaded    {size}, attention {kernel}, computing in {self.precision}")
        if model.dtype == torch.bfloat16 and computes_bfloat16_slowly(self.device):
            output.warn(
                "This processor is many times slower in bfloat16 than in float32. Add --set model.dtype=float32."
            )
        if head := head_modules(model):
            parameters = sum(value.numel() for module in head.values() for value in module.parameters())
            labels = len(self.recipe.data.choices or ())
            output.say(f"head      {', '.join(head)}: {labels} labels, {parameters:,} parameters, trained in full")
        return model

    def _refuse_what_the_model_cannot_take(self, model: PreTrainedModel) -> None:
        sets = [self.data.train] + ([self.data.eval] if self.data.eval else [])
        largest = max(rows.largest_id for rows in sets)
        vocabulary: int = cast(Any, model.get_input_embeddings()).weight.shape[0]
        if largest >= vocabulary:
            raise InputError(
                f"model.tokenizer makes token ids up to {largest:,}, but the model has {vocabulary:,} embeddings."
            )
        longest = max(max(rows.lengths) for rows in sets)
        positions = longest_input(model)
        if positions is not None and longest > positions and not self.source.encoder_decoder:
            raise InputError(
                f"data.max_length: the longest row has {longest:,} tokens, but the model takes {positions:,}."
            )

    def find_targets(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers to adapt, printed by kind."""
        targets = find_targets(model, self.recipe.adapter.targets, self.recipe.adapter.exclude)
        kinds: dict[str, int] = {}
        for name in targets:
            kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + 1
        output.say(
            f"targets   {len(targets)} layers: " + ", ".join(f"{kind} x{count}" for kind, count in kinds.items())
        )
        output.log("\n".join(targets))
        return targets

    def identify(self, model: PreTrainedModel, targets: Mapping[str, nn.Module]) -> ModelIdentity:
        """Fingerprints of the architecture and of the target weights."""
        names = {f"{name}.weight" for name in targets}
        weights = self.world.from_main(
            lambda: weights_fingerprint((name, tensor) for name, tensor in base_weights(model) if name in names)
        )
        return ModelIdentity(name=self.recipe.model.name, config=config_fingerprint(model.config), weights=weights)

    def move(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a micro-batch to the device."""
        return {key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()}

    @property
    def forward_settings(self) -> dict[str, Any]:
        """What a forward pass is told beside the batch; classifiers generate nothing, and not all know of a cache."""
        return {} if self.source.head == "classification" else {"use_cache": False}

    def loss_of(self, model: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Mean loss of a micro-batch, a scalar with a graph, in the recipe's arithmetic."""

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            with autocast(self.precision, self.device):
                value: Tensor = model(**batch, **self.forward_settings).loss
            return value

        return loss


def _collator(tokenizer: PreTrainedTokenizerBase, source: Source) -> Collator | LabelCollator:
    if source.head == "language":
        return Collator.of(tokenizer, source.encoder_decoder)
    if padding_id(tokenizer) is None:
        raise InputError(
            "The tokenizer has no padding token, without which texts of different lengths cannot share a batch. Name "
            "another one with `model.tokenizer`, or set `pad_token` in its tokenizer_config.json."
        )
    return LabelCollator(padding_id(tokenizer), knows_token_types(source.config))
