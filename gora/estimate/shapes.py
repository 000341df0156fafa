"""The numbers of a model that its memory follows from, read off the empty model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gora.models.language import in_adapted_part
from gora.models.targets import is_linear, weight_shape

_NORM = re.compile(r"norm", re.IGNORECASE)
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_GATED = 3
# GELU written out as a formula keeps what its steps were given.
_IN_STEPS, _GELU_IN_STEPS = ("NewGELUActivation", "FastGELUActivation"), 3


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """One block of a model; all numbers are values of one token.

    Attributes:
        hidden: what enters the block and leaves it.
        norms: what its norms are given, together.
        queries: width of the queries, and of what attention returns.
        keys: width of the keys, and of the values.
        heads: of the queries.
        fused: what one layer computes beside the values, which keep it alive as a view of its output.
        mlp: width inside the feed-forward part; for experts, that of all experts that a token visits.
        inner: how many tensors of that width the activation keeps: three where two products are multiplied (SwiGLU).
        adapted: how many of its layers have an adapter.
        adapted_inputs: what those layers are given, each by itself.
        new_inputs: the same, where layers that are given the same values share them and attention's output, which is
            kept anyway, is left out.
        outputs: the widest output of a linear layer.
        weights: of all its parameters.
        tokens: of an image in this block; 0 for text, whose rows have lengths of their own.
    """

    hidden: int
    norms: int
    queries: int
    keys: int
    heads: int
    fused: int
    mlp: int
    inner: int
    adapted: int
    adapted_inputs: int
    new_inputs: int
    outputs: int
    weights: int
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model.

    Attributes:
        blocks: in their order.
        hidden: values of a token between blocks.
        vocabulary: tokens that its head predicts; 0 for a classifier, whose logits are few.
        weights: parameters of the whole model.
        linear: those of linear layers beside the head, which quantisation packs.
        targets: (out, in) of every adapted layer.
    """

    blocks: tuple[BlockShape, ...]
    hidden: int
    vocabulary: int
    weights: int
    linear: int
    targets: dict[str, tuple[int, int]]

    @property
    def largest_block(self) -> BlockShape:
        """The block with the most weights."""
        return max(self.blocks, key=lambda block: block.weights)


def read_shape(model: nn.Module, adapted: Collection[str]) -> ModelShape:
    """Read a model's numbers off its modules.

    Args:
        model: not wrapped; its weights may be on the meta device.
        adapted: names of the layers to adapt.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    chosen, belongs = set(adapted), in_adapted_part(model)
    blocks = [
        read_block(name, block, text, chosen)
        for name, block in model.named_modules()
        if isinstance(block, GradientCheckpointingLayer) and belongs(name)
    ]
    return model_shape(model, blocks or [read_block("", model, text, chosen)], _hidden(text), adapted)


def model_shape(model: nn.Module, blocks: Sequence[BlockShape], hidden: int, adapted: Collection[str]) -> ModelShape:
    """A model of these blocks; see `read_shape`."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = [layer for layer in model.modules() if is_linear(layer) and layer is not head]
    return ModelShape(
        blocks=tuple(blocks),
        hidden=hidden,
        vocabulary=0 if head is None else int(head.weight.shape[0]),
        weights=_count(model),
        linear=sum(_count(layer) for layer in linear),
        targets={name: weight_shape(model.get_submodule(name)) for name in adapted},
    )


def read_block(name: str, block: nn.Module, config: Any, adapted: Collection[str]) -> BlockShape:
    """Read the numbers of one block.

    Args:
        name: of the block in its model; empty for the model itself.
        block: the block.
        config: says its widths and heads.
        adapted: names of the layers to adapt.
    """
    prefix = f"{name}." if name else ""
    layers = {inner: layer for inner, layer in block.named_modules() if is_linear(layer)}
    shapes = {inner: weight_shape(layer) for inner, layer in layers.items()}
    hidden = _hidden(config)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    each = int(getattr(config, "head_dim", None) or hidden // heads)
    queries, keys = heads * each, int(getattr(config, "num_key_value_heads", None) or heads) * each
    attention = {inner for inner in shapes if _ATTENTION.search(inner)}
    if not attention:
        queries = keys = heads = 0
    mlp, inner = _feed_forward({inner: shape for inner, shape in shapes.items() if inner not in attention}, hidden)
    if experts := _visited(config):
        mlp, inner = experts, _GATED
    elif inner == 1 and any(type(module).__name__ in _IN_STEPS for module in block.modules()):
        inner = _GELU_IN_STEPS
    whole = any(shapes[name][0] == queries + 2 * keys for name in attention)
    chosen = {inner: shapes[inner][1] for inner in shapes if prefix + inner in adapted}
    return BlockShape(
        hidden=hidden,
        norms=sum(_norm_inputs(block, hidden, queries, keys)),
        queries=queries,
        keys=keys,
        heads=heads,
        fused=queries + keys if whole else 0,
        mlp=mlp,
        inner=inner,
        adapted=len(chosen),
        adapted_inputs=sum(chosen.values()),
        new_inputs=_new_inputs(shapes, chosen, attention),
        outputs=max((shape[0] for shape in shapes.values()), default=hidden),
        weights=_count(block),
    )


def _new_inputs(shapes: dict[str, tuple[int, int]], chosen: dict[str, int], attention: set[str]) -> int:
    """What adapted layers are given that nothing else keeps; layers side by side are given the same values."""
    last = [inner for inner in shapes if inner in attention][-1:]
    seen = {(inner in attention, width) for inner, width in chosen.items() if inner not in last}
    return sum(width for _, width in seen)


def _feed_forward(shapes: dict[str, tuple[int, int]], hidden: int) -> tuple[int, int]:
    """Width inside the part beside attention, and how many tensors of that width are kept."""
    inner = max((columns for rows, columns in shapes.values() if rows == hidden), default=0)
    wide = sum(rows for rows, columns in shapes.values() if columns == hidden)
    return inner, _GATED if inner and wide >= 2 * inner else 1


def _visited(config: Any) -> int:
    """Width inside all experts that a token visits; 0 for a model without experts."""
    each = getattr(config, "num_experts_per_tok", None)
    width = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None)
    return int(each) * int(width) if isinstance(each, int) and isinstance(width, int) else 0


def _norm_inputs(block: nn.Module, hidden: int, queries: int, keys: int) -> Iterator[int]:
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not _NORM.search(type(module).__name__) or weight is None:
            continue
        own = name.rpartition(".")[2]
        # Norms of queries and keys hold one weight for each head, or one for all heads together.
        yield queries if own.startswith("q") else keys if own.startswith("k") else max(hidden, weight.shape[-1])


def _hidden(config: Any) -> int:
    return int(getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or config.n_embd)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
