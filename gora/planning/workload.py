"""The estimate for a recipe: its model, rows, engine and settings as `gora.estimate` takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import nn

from gora.data import PreparedData
from gora.estimate.memory import FLOAT32, Arithmetic, Batch, Memory, Sharing, pass_memory, training_memory
from gora.estimate.shapes import ModelShape, read_shape
from gora.estimate.sizes import divisors, largest_that_fits
from gora.estimate.vision_shapes import read_vision_shape
from gora.gradients.host import staging_bytes
from gora.gradients.placement import sum_bytes
from gora.gradients.replay import LONGEST
from gora.methods import METHODS
from gora.models.attention import attention_kernel, has_flash
from gora.models.device import base_dtype
from gora.models.experts import matrices_of
from gora.models.head import head_modules
from gora.models.image_processor import ImageReader
from gora.models.load import empty_model
from gora.models.quantization import quantization_of, weight_bytes
from gora.models.supervised_head import logits_at_a_time
from gora.models.targets import weight_shape
from gora.recipe.derived import reference_rank
from gora.recipe.schema import AdapterSection
from gora.runs.context import RunContext
from gora.runtime.engine import Engine

# Left free on a device: what its allocator cannot use, and what libraries take beside it.
_GPU_SHARE, _GPU_BYTES = 0.95, 600 * 10**6
_HOST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What memory follows from, of one recipe on one machine.

    Attributes:
        shape: the model's numbers.
        arithmetic: of both passes, without activation checkpointing.
        sharing: of training.
        weights: bytes of the base weights.
        trained: how many values are trained.
        rank: of an adapter, on average.
        lengths: tokens of every training row, in descending order.
        offload: where gradient sums are wanted.
        limit: bytes of the device that may be used.
        batch_size: rows of an optimizer step.
        causal: whether the model predicts each token from those before it alone.
        end_to_end: whether rows follow each other without padding.
        supervised: most supervised tokens of a row; None where all tokens have their logits.
    """

    shape: ModelShape
    arithmetic: Arithmetic
    sharing: Sharing
    weights: int
    trained: int
    rank: float
    lengths: tuple[int, ...]
    offload: str
    limit: int
    batch_size: int
    causal: bool
    end_to_end: bool = False
    supervised: int | None = None

    def batch(self, rows: int) -> Batch:
        """The most that a micro-batch can be: as long as the longest row, and with a mask where another is shorter."""
        longest, shortest = self.lengths[0], self.lengths[-1]
        padded = rows > 1 and shortest < longest and not self.end_to_end
        return Batch(rows=rows, length=longest, padded=padded)

    def _arithmetic(self, rows: int, checkpointing: bool) -> Arithmetic:
        """That of a micro-batch; the logits of supervised tokens are computed a part at a time."""
        if self.supervised is None:
            return replace(self.arithmetic, checkpointing=checkpointing)
        at_a_time = logits_at_a_time(self.shape.vocabulary)
        tokens = min(rows * self.supervised, at_a_time)
        return replace(self.arithmetic, checkpointing=checkpointing, logit_tokens=tokens)

    def training(self, rows: int, *, checkpointing: bool) -> Memory:
        """The peak of training with so many rows in a micro-batch."""
        return training_memory(
            self.shape,
            self.batch(rows),
            self._arithmetic(rows, checkpointing),
            self.sharing,
            weights=self.weights,
            trained=self.trained,
            rank=self.rank,
        )

    def gradients(self, rows: int, *, checkpointing: bool) -> Memory:
        """The peak of the gradient pass; sums that do not fit beside the rest lie in host memory."""
        sums = sum_bytes(self.shape.targets)
        batch = self.batch(rows)
        recorded = self.causal and not checkpointing and not self.sharing.shards_weights and batch.tokens <= LONGEST
        arithmetic = replace(self._arithmetic(rows, checkpointing), recorded=recorded)
        weights = replace(self.sharing, shards_optimizer=False, offloads=False)

        def placed(on_device: int, staging: int = 0) -> Memory:
            return pass_memory(
                self.shape, batch, arithmetic, weights, weights=self.weights, sums=on_device, staging=staging
            )

        near = placed(sums)
        if self.offload == "none" or not arithmetic.on_gpu or (self.offload == "auto" and near.total <= self.limit):
            return near
        far = placed(0, staging_bytes(self.shape.targets))
        room = max(0, self.limit - far.total) if self.offload == "auto" else 0
        return replace(far, sums=min(room, sums), host=sums - min(room, sums))

    def under(self, sharing: Sharing) -> Workload:
        """The same under another engine."""
        return replace(self, sharing=sharing)

    def training_sizes(self, processes: int) -> list[int]:
        """Micro-batches that share out an optimizer step evenly."""
        return divisors(self.batch_size // processes) if self.batch_size % processes == 0 else []

    def largest(self, memory_of: Callable[[int], Memory], sizes: list[int]) -> int | None:
        """The largest of these micro-batches that fits, or None."""
        return largest_that_fits([size for size in sizes if size <= len(self.lengths)], memory_of, self.limit)


def workload_of(context: RunContext) -> Workload:
    """Read everything off the empty model, the rows and the machine; no weights are loaded."""
    recipe, device = context.recipe, context.device
    model = empty_model(context.source)
    shape = _shape_of(model, context)
    if context.chosen.experts:
        matrices = matrices_of(context.chosen.of(model))
        shape = replace(shape, targets={name: weight_shape(matrix) for name, matrix in matrices.items()})
    dtype = base_dtype(recipe.model.dtype, device)
    kernel = attention_kernel(recipe.model.attention, dtype, device, has_flash(context.source))
    trained, rank = trained_values(context, shape, model)
    quantization, causal = quantization_of(recipe.model, context.source), context.source.causal
    # Whether a model really can is seen when it is loaded; most can.
    end_to_end = causal and recipe.data.packing != "none" and (kernel or "sdpa") == "sdpa"
    heads_alone = causal and context.fuses and not context.engine.shards_weights
    return Workload(
        shape=shape,
        arithmetic=Arithmetic(
            width=2 if context.precision == "bf16" else FLOAT32,
            weight_width=dtype.itemsize,
            attention=kernel or model.config._attn_implementation,
            dropout=recipe.adapter.dropout > 0,
            shares_inputs=(context.fuses and _plain(recipe.adapter)) or quantization is not None,
            on_gpu=device.type == "cuda",
        ),
        sharing=sharing_of(context.engine, context.processes),
        weights=weight_bytes(model, recipe.model, device),
        trained=trained,
        rank=rank,
        lengths=_lengths(context.data),
        offload=recipe.gora.offload,
        limit=memory_limit(context),
        batch_size=recipe.train.batch_size,
        causal=context.source.causal,
        end_to_end=end_to_end,
        supervised=_densest(context) if heads_alone else None,
    )


def _shape_of(model: nn.Module, context: RunContext) -> ModelShape:
    reader = context.processor
    if isinstance(reader, ImageReader):
        return read_vision_shape(model, context.chosen.layers, reader.size)
    return read_shape(model, context.chosen.layers)


def _plain(adapter: AdapterSection) -> bool:
    """Whether gora's own forward pass serves the adapters."""
    return not adapter.dropout and not adapter.dora


def _densest(context: RunContext) -> int:
    """The most supervised tokens that a row's share of a micro-batch can have; packed ones are filled with others."""
    rows = context.data.train
    if context.recipe.data.packing in ("none", "padding-free"):
        return max(rows.supervised)
    longest = max(rows.lengths)
    share = max(trained / length for trained, length in zip(rows.supervised, rows.lengths, strict=True))
    return math.ceil(longest * share)


def trained_values(context: RunContext, shape: ModelShape, model: Any) -> tuple[int, float]:
    """How many values are trained, and the mean rank; before a plan, every layer counts with the reference rank."""
    recipe, folder = context.recipe, context.folder
    method = METHODS[recipe.adapter.method]
    beside = sum(value.numel() for module in head_modules(model).values() for value in module.parameters())
    beside += len(context.new_tokens) * shape.hidden
    if method.saved_as == "model":
        return beside + sum(rows * columns for rows, columns in shape.targets.values()), 0.0
    ranks: Mapping[str, int] = dict.fromkeys(shape.targets, reference_rank(recipe.adapter))
    if method.needs_plan and folder.plan.exists():
        from gora.plan import read_plan

        ranks = {**ranks, **{module.name: module.rank for module in read_plan(folder.plan).modules}}
    values = sum(ranks[name] * sum(pair) for name, pair in shape.targets.items())
    values += sum(pair[0] for pair in shape.targets.values()) if recipe.adapter.dora else 0
    return beside + values, sum(ranks[name] for name in shape.targets) / max(len(shape.targets), 1)


def _lengths(data: PreparedData) -> tuple[int, ...]:
    """Those of all training rows; of a stream, those of the first rows and one of the longest that may come."""
    more = [data.longest] if data.stream else []
    return tuple(sorted([*data.train.lengths, *more], reverse=True))


def sharing_of(engine: Engine, processes: int) -> Sharing:
    """What an engine shares out over so many processes."""
    zero: Mapping[str, Any] = engine.settings.get("zero_optimization", {}) if engine.kind == "deepspeed" else {}
    # DeepSpeed's own default, and two buffers where it communicates while it computes.
    bucket = int(float(zero.get("reduce_bucket_size", 5e8))) if zero else 0
    return Sharing(
        processes=processes,
        shards_weights=engine.shards_weights,
        shards_optimizer=engine.kind != "ddp",
        offloads=engine.offloads,
        bucket=FLOAT32 * bucket * (2 if zero.get("overlap_comm") else 1),
    )


def memory_limit(context: RunContext) -> int:
    """Bytes of the device that this process may use: of a GPU what others leave, less a reserve; else host memory."""
    if context.device.type != "cuda":
        return round(psutil.virtual_memory().available * _HOST_SHARE) // context.world.local_size
    free, _ = torch.cuda.mem_get_info(context.device)
    own = torch.cuda.memory_reserved(context.device)
    return round((free + own) * _GPU_SHARE) - _GPU_BYTES
