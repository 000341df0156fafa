"""One run: its recipe, folder, processes and engine, opened once for each command and handed down.

Rows and tokenizer are read when they are first asked for, and once: `gora run` trains on the very rows whose gradients
it took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gora.adapters.dry_wrap import Chosen, choose_layers
from gora.adapters.trainable import refuse_mixed_types, refuse_untrainable
from gora.data import Collator, PreparedData
from gora.files import delete
from gora.models.device import base_dtype, default_device
from gora.models.kernels import refuse_kernels
from gora.models.rows_apart import forward, keeps_apart
from gora.models.source import Source, find_model
from gora.models.tokenizer import new_token_ids
from gora.models.weight_files import StoredWeights, stored_weights
from gora.recipe.derived import with_settings
from gora.recipe.origins import Origin
from gora.recipe.schema import Recipe
from gora.runs.engine_choice import choose_engine, join_run
from gora.runs.folder import RunFolder
from gora.runs.ignored_settings import ignored_settings
from gora.runs.inputs import AnyCollator, Inputs, Processor, read_inputs, with_class_names
from gora.runs.owner import owning_together
from gora.runs.replacing import refuse_foreign_files, refuse_links
from gora.runs.state import Mode, Progress, Verb, find_progress, settle
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.phases import phases
from gora.runtime.precision import Precision, autocast, resolve_precision
from gora.runtime.quiet import quiet_libraries
from gora.runtime.world import World


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A run as one command sees it; made by `open`.

    Attributes:
        recipe: the recipe.
        mode: what the user wants of the folder.
        folder: the run folder, owned by this command.
        world: the processes of the run, joined.
        engine: what keeps them in step.
        device: what computes in this process.
        precision: arithmetic of the forward and backward pass.
        trust_remote_code: let the model run Python code of its own.
        automatic: settings that the recipe left to gora; `recipe` holds what was chosen for them.
        planned: processes that a run would have, where this is only a look at it; 0 elsewhere.
    """

    recipe: Recipe
    mode: Mode
    folder: RunFolder
    world: World
    engine: Engine
    device: torch.device
    precision: Precision
    trust_remote_code: bool = False
    automatic: frozenset[str] = frozenset()
    planned: int = 0

    @property
    def processes(self) -> int:
        """How many processes share a step."""
        return self.planned or self.world.size

    @classmethod
    @contextmanager
    def open(
        cls, recipe: Recipe, *, command: str, mode: Mode = "new", trust_remote_code: bool = False
    ) -> Iterator[RunContext]:
        """Join the other processes of the run, if there are any, and take the run folder.

        Args:
            recipe: the recipe.
            command: told to whoever finds the folder in use.
            mode: what the user wants of the folder.
            trust_remote_code: let the model run Python code of its own.

        Raises:
            InputError: there is no such engine, it cannot run here, or the folder is not gora's or is in use.
        """
        recipe, engine, world = join_run(recipe, trust_remote_code=trust_remote_code)
        folder = RunFolder.of(recipe.output)
        if not world.main:
            output.mute()
        with owning_together(world, folder.path, command=command):
            world.refuse_together(lambda: refuse_links(folder))
            yield cls._of(recipe, world, engine, mode=mode, folder=folder, trust_remote_code=trust_remote_code)

    @classmethod
    def alone(cls, recipe: Recipe, *, trust_remote_code: bool = False) -> RunContext:
        """Rows and model of a recipe for this process only, which writes into no run folder."""
        engine, folder = Engine.of("ddp"), RunFolder(Path())
        return cls._of(recipe, World(), engine, mode="new", folder=folder, trust_remote_code=trust_remote_code)

    @classmethod
    def looking(
        cls, recipe: Recipe, *, processes: int, mode: Mode = "new", trust_remote_code: bool = False
    ) -> RunContext:
        """A run of so many processes before it is started: nothing is written, and weights need not be there."""
        recipe = choose_engine(
            recipe, processes=processes, device=default_device(), trust_remote_code=trust_remote_code, weights=False
        )
        return cls._of(
            recipe,
            World(),
            Engine.of(recipe.distributed),
            mode=mode,
            folder=RunFolder.of(recipe.output),
            trust_remote_code=trust_remote_code,
            planned=processes,
        )

    @classmethod
    def _of(cls, recipe: Recipe, world: World, engine: Engine, **named: Any) -> RunContext:
        recipe = with_class_names(recipe, world)
        device = default_device()
        precision = resolve_precision(recipe.train.precision, device)
        if ignored := ignored_settings(engine, recipe, world, precision):
            output.warn_once(f"{engine.name}: only the engine is taken from this file, not {', '.join(ignored)}.")
        return cls(recipe=recipe, world=world, engine=engine, device=device, precision=precision, **named)

    def with_settings(
        self,
        settings: Mapping[str, Any],
        automatic: frozenset[str] | None = None,
        origins: Mapping[str, Origin] | None = None,
    ) -> RunContext:
        """The same run with other values of settings that its rows and model do not depend on.

        Args:
            settings: values by dotted key.
            automatic: replaces the attribute, unless None.
            origins: where the values come from, if that is worth telling.
        """
        recipe = with_settings(self.recipe, settings, origins)
        other = replace(self, recipe=recipe, automatic=self.automatic if automatic is None else automatic)
        # What was read once stays read.
        other.__dict__.update({key: value for key, value in self.__dict__.items() if key in _READ_ONCE})
        return other

    def settle(self, verb: Verb, *, needs_plan: bool = False) -> Progress:
        """How far the run has come, the same in every process, before anything is written.

        Raises:
            InputError: the command would replace something without being told to, has nothing to resume, or would
                delete files that are not gora's.
        """
        progress = Progress.from_json(self.world.from_main(lambda: find_progress(self.folder).as_json()))
        settle(self.folder, progress, verb, self.mode, needs_plan=needs_plan)
        self.world.refuse_together(lambda: refuse_foreign_files(self.folder))
        if self.world.main:
            delete(self.folder.failure)
        return progress

    @cached_property
    @phases.within("rows")
    def inputs(self) -> Inputs:
        """Find the model, load its tokenizer, read and tokenize the rows; all processes of a run ask together.

        Raises:
            InputError: the model, the tokenizer or the rows cannot be used.
        """
        quiet_libraries()
        recipe = self.recipe
        source = find_model(
            recipe.model,
            labels=recipe.data.choices,
            trust_remote_code=self.trust_remote_code,
            weights=not self.planned,
        )
        refuse_untrainable(recipe, source, self.engine)
        refuse_kernels(recipe.train.kernels, self.device)
        refuse_mixed_types(recipe, self.precision, base_dtype(recipe.model.dtype, self.device))
        inputs = read_inputs(recipe, source, self.world)
        data = inputs.data
        output.say(f"model     {recipe.model.name}")
        output.say(f"rows      {data.counts.summary()}")
        if data.stream:
            size = data.stream.block_size
            output.say(f"stream    {size:,} rows are shuffled together; those behind the first are not known yet")
        if data.train.mixture:
            output.say(f"mixture   {data.train.mixture.summary()}")
        # From here on process 0 may change the run folder, which all have looked at.
        self.world.barrier()
        return inputs

    @property
    def source(self) -> Source:
        """The base model, found and not loaded."""
        return self.inputs.source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of rows of text."""
        return self.inputs.text_tokenizer

    @property
    def processor(self) -> Processor:
        """What makes inputs of rows, as it will be saved with the adapter: a tokenizer, or what prepares images."""
        return self.inputs.processor

    @property
    def data(self) -> PreparedData:
        """Tokenized training and evaluation rows."""
        return self.inputs.data

    @property
    def collator(self) -> AnyCollator:
        """Makes micro-batches of rows."""
        return self.inputs.collator

    @property
    def new_tokens(self) -> list[int]:
        """Ids of the tokens whose embeddings are trained."""
        if not self.recipe.model.new_tokens:
            return []
        return new_token_ids(self.inputs.text_tokenizer, self.recipe.model.new_tokens)

    @property
    def fuses(self) -> bool:
        """Whether to compute otherwise than transformers and PEFT, to the same result: `train.kernels`."""
        kernels = self.recipe.train.kernels
        if kernels == "auto":
            return self.precision == "bf16" and self.device.type == "cuda"
        return kernels != "none"

    def collate(self, model: nn.Module, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """A micro-batch for a model: end to end if it keeps rows apart, else padded."""
        if isinstance(self.collator, Collator) and keeps_apart(model):
            return self.collator.end_to_end(rows)
        return self.collator(rows)

    @cached_property
    def chosen(self) -> Chosen:
        """The layers to adapt, settled on the empty model by wrapping it; asked for before the model is loaded.

        Raises:
            InputError: a layer cannot be adapted.
        """
        return choose_layers(self.recipe.adapter, self.source)

    def adapt(self, chosen: Chosen) -> None:
        """Adapt these layers from here on, where the loaded model showed that not all of those chosen will do."""
        self.__dict__["chosen"] = chosen

    @cached_property
    def base(self) -> StoredWeights:
        """The weights in the base model's files; all processes have to ask together."""
        with output.terminal.status("fingerprinting the base model"):
            return stored_weights(self.source, self.world)

    def move(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Move a micro-batch to the device."""
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    @property
    def forward_settings(self) -> dict[str, Any]:
        """What a forward pass is told beside the batch; classifiers generate nothing, and not all know of a cache."""
        return {"use_cache": False} if self.source.head == "language" else {}

    def loss_of(self, model: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Mean loss of a micro-batch, a scalar with a graph, in the recipe's arithmetic."""

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            with autocast(self.precision, self.device):
                value: Tensor = forward(model, batch, **self.forward_settings).loss
            return value

        return loss


_READ_ONCE = ("inputs", "chosen", "base")
