"""Peak memory of the gradient pass and of training, by part.

What autograd keeps of a block is counted as transformers computes it: a norm keeps its input in float32, attention its
queries, keys, values and output, a gated feed-forward part the two products and what the activation made of one. A
frozen layer keeps nothing. In bfloat16 PEFT brings the input of every adapted layer to float32 and autocast brings it
back, so that each adapted layer keeps a copy of its own; in float32, beside packed weights and in gora's own forward
pass of adapters, layers side by side share theirs.

The peak comes at the start of the backward pass: everything that was kept is there, and the logits' gradients with it.
With activation checkpointing it comes there, or where the largest block is recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from gora.estimate.shapes import BlockShape, ModelShape

FLOAT32 = 4
# cuBLAS takes this for each stream of each of the two threads that launch products, the forward pass's and the backward
# pass's, and keeps it. Recording a pass takes two more streams.
_WORKSPACE = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak, on the device that computes; `host` is what is kept in host memory besides.

    Attributes:
        weights: of the base model.
        sums: of gradients, in the gradient pass.
        adapters: trained values, float32, and their copies in the type of the products.
        gradients: of the trained values.
        optimizer: both moments of AdamW, and the engine's own copy of the values.
        activations: kept for the backward pass.
        logits: of the head, with their gradient.
        buffers: of libraries and engines.
        host: in host memory.
    """

    weights: int = 0
    sums: int = 0
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """The device's parts by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "host"}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch.

    Attributes:
        rows: how many.
        length: tokens of the longest, to which all are padded.
        padded: whether some are shorter, so that attention is given a mask.
    """

    rows: int
    length: int
    padded: bool = False

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How passes are computed.

    Attributes:
        width: bytes of a value in the products: 2 for bfloat16, 4 for float32.
        weight_width: bytes of a weight that is not quantised.
        attention: `eager` keeps the probabilities of every pair of tokens.
        checkpointing: whether activations are recomputed in the backward pass.
        dropout: whether the adapters' input has dropout.
        logit_tokens: most tokens that have their logits at a time; None for all of a micro-batch.
        shares_inputs: whether adapters take their input in the type of the products, as gora's own and those over
            packed weights do.
        on_gpu: whether a GPU computes.
        recorded: whether the gradient pass is recorded and replayed.
    """

    width: int
    weight_width: int
    attention: str = "sdpa"
    checkpointing: bool = False
    dropout: bool = False
    logit_tokens: int | None = None
    shares_inputs: bool = False
    on_gpu: bool = True
    recorded: bool = False

    @property
    def workspaces(self) -> int:
        """Bytes that libraries of products take."""
        return (6 if self.recorded else 2) * _WORKSPACE if self.on_gpu else 0


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How the processes of a run share out what each would hold otherwise.

    Attributes:
        processes: how many.
        shards_weights: each holds a share of the base weights and of everything that is trained (ZeRO-3, FSDP).
        shards_optimizer: each holds a share of gradients and optimizer states (ZeRO-2 and above).
        offloads: those lie in host memory.
        bucket: bytes of the buffers in which an engine collects gradients.
    """

    processes: int = 1
    shards_weights: bool = False
    shards_optimizer: bool = False
    offloads: bool = False
    bucket: int = 0


def kept_of_block(block: BlockShape, batch: Batch, arithmetic: Arithmetic, *, rank: float | None = None) -> int:
    """Bytes that autograd keeps of one block.

    Args:
        block: its numbers.
        batch: the micro-batch.
        arithmetic: how it is computed.
        rank: of its adapters; None in the gradient pass, where taps keep their layers' inputs as they are.
    """
    width = arithmetic.width
    token = FLOAT32 * block.norms + _attention(block, batch, arithmetic)
    token += width * block.mlp * block.inner
    if rank is None or width == FLOAT32 or arithmetic.shares_inputs:
        token += width * block.new_inputs
    else:
        token += width * block.adapted_inputs
    if rank is not None:
        token += round(width * rank * block.adapted)
        token += block.adapted_inputs if arithmetic.dropout else 0
    return _tokens(block, batch) * token


def _tokens(block: BlockShape, batch: Batch) -> int:
    """Tokens of a micro-batch in one block: an image has the same number, whatever it shows."""
    return batch.rows * block.tokens if block.tokens else batch.tokens


def _attention(block: BlockShape, batch: Batch, arithmetic: Arithmetic) -> int:
    """Bytes of a token in attention."""
    width = arithmetic.width
    if not block.heads:
        return 0
    if arithmetic.attention == "eager":
        # Probabilities in float32, as softmax leaves them, and in the type of the products; keys and values repeated.
        pairs = block.heads * (block.tokens or batch.length) * (width + (FLOAT32 if width != FLOAT32 else 0))
        return pairs + width * 3 * block.queries
    token = width * 2 * block.queries + FLOAT32 * block.heads
    if batch.padded and arithmetic.attention != "flash_attention_2":
        # With a mask torch's kernel takes keys and values repeated for every head, and a bias for every pair.
        return token + width * 2 * block.queries + width * batch.length
    return token + width * (2 * block.keys + block.fused)


def logits_bytes(shape: ModelShape, batch: Batch, arithmetic: Arithmetic) -> int:
    """Bytes of the head's output at the peak: float32 log-probabilities, and two gradients as large."""
    tokens = min(batch.tokens, arithmetic.logit_tokens or batch.tokens)
    return 3 * FLOAT32 * tokens * shape.vocabulary


def _working(
    shape: ModelShape, batch: Batch, arithmetic: Arithmetic, kept: Callable[[BlockShape], int]
) -> tuple[int, int]:
    """Bytes of activations and of logits at the peak."""
    logits = logits_bytes(shape, batch, arithmetic)
    ends = _tokens(shape.blocks[0], batch) * shape.hidden * FLOAT32
    if not arithmetic.checkpointing:
        everything = sum(kept(block) for block in shape.blocks)
        return everything + ends + max(0, _passing(shape, batch, arithmetic) - logits), logits
    boundaries = sum(_tokens(block, batch) * block.hidden for block in shape.blocks) * arithmetic.weight_width
    recomputed = max(kept(block) for block in shape.blocks) + _passing(shape, batch, arithmetic)
    return boundaries + ends + max(0, recomputed - logits), logits


def _passing(shape: ModelShape, batch: Batch, arithmetic: Arithmetic) -> int:
    """Bytes of what the backward pass of a block computes on its way: the gradients inside its feed-forward part."""
    return max(_tokens(block, batch) * arithmetic.width * (3 * block.mlp + block.hidden) for block in shape.blocks)


def pass_memory(
    shape: ModelShape,
    batch: Batch,
    arithmetic: Arithmetic,
    sharing: Sharing,
    *,
    weights: int,
    sums: int,
    staging: int = 0,
) -> Memory:
    """The gradient pass, in one process.

    Args:
        shape: the model.
        batch: its largest micro-batch.
        arithmetic: how it is computed.
        sharing: what other processes take over.
        weights: bytes of the base weights.
        sums: bytes of the gradient sums on the device.
        staging: bytes through which sums in host memory pass.
    """

    def kept(block: BlockShape) -> int:
        return kept_of_block(block, batch, arithmetic)

    activations, logits = _working(shape, batch, arithmetic, kept)
    held, gathered = _held_weights(shape, arithmetic, sharing, weights)
    buffers = staging + gathered + arithmetic.workspaces
    return Memory(weights=held, sums=sums, activations=activations, logits=logits, buffers=buffers)


def training_memory(
    shape: ModelShape,
    batch: Batch,
    arithmetic: Arithmetic,
    sharing: Sharing,
    *,
    weights: int,
    trained: int,
    rank: float,
) -> Memory:
    """Training with AdamW, in one process, from the second micro-batch on.

    Args:
        shape: the model.
        batch: its largest micro-batch.
        arithmetic: how it is computed.
        sharing: what other processes take over.
        weights: bytes of the base weights.
        trained: how many values are trained.
        rank: of an adapter, on average over the layers.
    """

    def kept(block: BlockShape) -> int:
        return kept_of_block(block, batch, arithmetic, rank=rank)

    activations, logits = _working(shape, batch, arithmetic, kept)
    held, gathered = _held_weights(shape, arithmetic, sharing, weights)
    share = sharing.processes if sharing.shards_weights else 1
    states = sharing.processes if sharing.shards_optimizer else 1
    values = FLOAT32 * trained
    # The moments; an engine that shards them steps a float32 copy of its share of the values.
    optimizer = (3 if sharing.shards_optimizer else 2) * values // states
    gradients = values // states
    casts = arithmetic.width * trained if arithmetic.width != FLOAT32 else 0
    buckets = values if sharing.processes > 1 and not sharing.shards_optimizer else sharing.bucket
    device = Memory(
        weights=held,
        adapters=values // share + casts,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=buckets + gathered + arithmetic.workspaces,
    )
    if sharing.offloads:
        return replace(device, gradients=0, optimizer=0, host=gradients + optimizer)
    return device


def _held_weights(shape: ModelShape, arithmetic: Arithmetic, sharing: Sharing, weights: int) -> tuple[int, int]:
    """Bytes of base weights that a process holds, and of those that it gathers for the time of their turn."""
    if not sharing.shards_weights:
        # Weights wider than the products are cast for each of them, and kept so for the backward pass.
        cast = arithmetic.width * shape.linear if arithmetic.weight_width > arithmetic.width else 0
        return weights + cast, 0
    # A block and the one after it, and what lies beside the blocks: embeddings and head.
    beside = shape.weights - sum(block.weights for block in shape.blocks)
    gathered = arithmetic.weight_width * (2 * shape.largest_block.weights + beside)
    return weights // sharing.processes, min(gathered, weights)
