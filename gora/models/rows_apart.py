"""Rows laid end to end in one sequence: attention stays within each row, and no token is padding.

An attention implementation of transformers' own kind (`AttentionInterface`). Which rows a forward pass is on is not
among the arguments of every model, so that it is noted here for the time of the pass, and again where activation
checkpointing repeats a part of it in the backward pass. FlashAttention-2, where a model has it, is told there as well
where rows begin. Whether a model then really keeps rows apart is tried out before it is relied on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_varlen: Any
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen
except ImportError:
    _varlen = None
_SETTINGS = frozenset(inspect.signature(_varlen).parameters) if _varlen else frozenset()
"""What torch's attention over rows of several lengths can be told; it has learnt since it came."""

NAME = "rows-apart"
FLASH = "flash_attention_2"
ROWS = "rows"
"""Key of a batch whose value is the length of each row, a tuple of int: the sign that they lie end to end."""

_MORE_THAN_CAUSAL = ("softcap", "s_aux", "position_bias")


@dataclass
class _Rows:
    # Not frozen: torch.compile looks into what is, and would compile again for every other number of rows.
    lengths: tuple[int, ...]
    """Empty where only the bounds are known, on the device."""
    bounds: Tensor
    """Where rows begin, and where the last ends: int32, on the device."""
    longest: int
    """At least the tokens of the longest row: the next power of two, so that kernels see few values."""
    span: Tensor
    """As many bytes as that: torch.compile takes a number for a constant, and a size for one that may change."""


_current: _Rows | None = None


@contextmanager
def _on(rows: _Rows | None) -> Iterator[None]:
    global _current
    before, _current = _current, rows
    try:
        yield
    finally:
        _current = before


def forward(model: nn.Module, batch: Mapping[str, Any], **settings: Any) -> Any:
    """Call a model on a batch, whether its rows are padded or lie end to end.

    Args:
        model: one for which `keeps_apart` holds if the rows lie end to end.
        batch: as the collators make it.
        settings: further arguments of the model.
    """
    lengths = batch.get(ROWS)
    inputs = {key: value for key, value in batch.items() if key != ROWS}
    if lengths is None:
        return model(**inputs, **settings)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = 1 << (max(lengths) - 1).bit_length()
    with laid_out(lengths, bounds.to(inputs["input_ids"].device, non_blocking=True), longest):
        return model(**inputs, **settings)


def laid_out(lengths: tuple[int, ...], bounds: Tensor, longest: int) -> AbstractContextManager[None]:
    """Inside the block, passes are on rows that lie end to end.

    Args:
        lengths: tokens of each; empty where they are on the device alone, which one kernel of attention can use.
        bounds: where rows begin, and where the last ends: int32, on the device.
        longest: at least the tokens of the longest row.
    """
    return _on(_Rows(lengths, bounds, longest, torch.empty(longest, dtype=torch.uint8)))


def rows_of_pass() -> tuple[int, ...]:
    """Lengths of the rows that the pass is on; empty where they do not lie end to end."""
    return _current.lengths if _current is not None else ()


def in_recomputation() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for activation checkpointing: a pass that is repeated is on the rows of the first."""
    return nullcontext(), _on(_current)


def keeps_apart(model: nn.Module) -> bool:
    """Whether rows that lie end to end may be given to this model: `set_apart` has been called and found it right."""
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return kernel == NAME or (kernel == FLASH and getattr(model, _SEEN, False))


def set_apart(model: PreTrainedModel, rows: Sequence[Sequence[int]], context: AbstractContextManager[Any]) -> str:
    """Have a model keep rows apart, and see on a few rows that it does; else leave it as it was.

    Each row alone has to give what it gives beside others, and no row may depend on the tokens of another. Models that
    carry more than attention from token to token, such as state-space models, fail this, as do those with an attention
    of their own. A model with FlashAttention keeps it, and is told where rows begin.

    Args:
        model: a causal language model.
        rows: token ids of two rows or more; the first tokens of each are used.
        context: arithmetic of the passes.

    Returns:
        Why the model cannot; empty where it can.
    """
    before = model.config._attn_implementation
    training = model.training
    if before not in ("sdpa", FLASH):
        return f"its attention is {before}, where `model.attention` has to be auto, sdpa or {FLASH}"
    try:
        model.eval()
        if before == "sdpa":
            model.set_attn_implementation(NAME)
        with torch.no_grad(), context:
            reason = _mixes(model, [list(row[:_TRIED]) for row in rows if len(row) > 1][:3])
    except Exception as error:  # whatever a model does not know of, such as positions, is a reason not to
        reason = f"it cannot be run on them ({type(error).__name__})"
    finally:
        model.train(training)
    if before == FLASH:
        setattr(model, _SEEN, not reason)
        return reason and f"with {FLASH}, {reason}; `model.attention: sdpa` may do it"
    if reason:
        model.set_attn_implementation(before)
    return reason


_TRIED = 48  # tokens of each row
_SEEN = "flash_keeps_rows_apart"


def _mixes(model: PreTrainedModel, rows: list[list[int]]) -> str:
    """What a model does wrong with rows that lie end to end."""
    if len(rows) < 2:
        return "there are not two rows to try it on"
    device = next(model.parameters()).device
    alone = torch.cat([model(**_end_to_end([row], device, mark=False)).logits[0] for row in rows])
    noise = (alone - _in_a_batch(model, rows, device)).float().abs().mean()
    together = forward(model, _end_to_end(rows, device)).logits[0]
    scale = alone.float().std()
    # Another kernel rounds otherwise: by more in half precision than padding shows.
    rounding = 1e-3 if together.dtype == torch.float32 else 1e-2
    if (together.float() - alone.float()).abs().mean() > rounding * scale + 2 * noise:
        return "a row gives other predictions beside others than alone"
    return "a token sees those of another row" if _depends_on_others(model, rows, device) else ""


def _depends_on_others(model: nn.Module, rows: list[list[int]], device: torch.device) -> bool:
    """Whether what is said about the later rows has a gradient with respect to the first: exactly zero, if none.

    A difference of predictions would have to be told from rounding, which hides what models of random weights see.
    """
    leaves: list[Tensor] = []

    def begin_graph(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        leaves.append(embedded.detach().requires_grad_(True))
        return leaves[0].clone()

    handle = model.get_input_embeddings().register_forward_hook(begin_graph)  # type: ignore[operator]
    try:
        with torch.enable_grad():
            logits = forward(model, _end_to_end(rows, device)).logits[0]
            (gradient,) = torch.autograd.grad(logits[len(rows[0]) :].float().square().mean(), leaves[0])
    finally:
        handle.remove()
    return bool(gradient[0, : len(rows[0])].any())


def _in_a_batch(model: PreTrainedModel, rows: list[list[int]], device: torch.device) -> Tensor:
    """Logits of padded rows: how far they are from those of each row alone is the noise of the arithmetic."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.cat([each[: len(row)] for each, row in zip(logits, rows, strict=True)])


def _end_to_end(rows: list[list[int]], device: torch.device, *, mark: bool = True) -> dict[str, Any]:
    ids = [token for row in rows for token in row]
    positions = [place for row in rows for place in range(len(row))]
    batch = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
    }
    return {**batch, ROWS: tuple(map(len, rows))} if mark else batch


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row.

    Args:
        module: the model's attention layer.
        query: 1 x heads x tokens x width, the tokens of all rows.
        key: the same with as many heads as keys have.
        value: as `key`.
        attention_mask: not used where rows lie end to end.
        dropout: share of weights that are dropped.
        scaling: of the products; None is one over the root of the width.
        is_causal: None asks the module.
        more: what else a model hands over.

    Returns:
        1 x tokens x heads x width, and None.
    """
    if _current is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **more
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal or any(more.get(name) is not None for name in _MORE_THAN_CAUSAL):
        raise NotImplementedError("attention that is more than causal")
    window = more.get("sliding_window")
    if _varlen_serves(query, dropout, window):
        return _by_varlen(query, key, value, _current, scaling, window), None
    return _row_by_row(query, key, value, dropout, scaling, window), None


def _mask(*args: Any, **kwargs: Any) -> Any:
    return None if _current is not None else sdpa_mask(*args, **kwargs)


@torch.compiler.disable
def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of one row after the other: any device and data type.

    Compiled blocks leave it to itself: what is compiled would hold for these lengths alone.
    """
    rows = _current
    if rows is None or not rows.lengths:
        raise NotImplementedError("attention that asks for the lengths of rows on the host")
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for q, k, v in zip(*(each.split(rows.lengths, dim=2) for each in (query, key, value)), strict=True):
        mask = _window_mask(q.shape[2], window, q.device) if window and q.shape[2] > window else None
        parts.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _window_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    back = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return (back >= 0) & (back < window)


def _by_varlen(
    query: Tensor, key: Tensor, value: Tensor, rows: _Rows, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of all rows in one kernel."""
    # Before it could be told so, the kernel took fewer keys than queries by itself.
    settings: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in _SETTINGS else {}
    if "window_size" in _SETTINGS:
        settings["window_size"] = (window - 1 if window else -1, 0)
    else:
        settings["is_causal"] = True
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    longest = _longest(rows)
    return _varlen(q, k, v, rows.bounds, rows.bounds, longest, longest, scale=scaling, **settings)[None]


def _longest(rows: _Rows) -> int:
    return rows.span.shape[0] if torch.compiler.is_compiling() else rows.longest


def _flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """FlashAttention as transformers calls it, told where rows begin if they lie end to end.

    It would see that from positions as well, for which every layer waits for the device.
    """
    if (rows := _current) is not None:
        attention_mask, longest = None, _longest(rows)
        settings |= {"cu_seq_lens_q": rows.bounds, "cu_seq_lens_k": rows.bounds}
        settings |= {"max_length_q": longest, "max_length_k": longest}
    return flash_attention_forward(module, query, key, value, attention_mask, **settings)


def _varlen_serves(query: Tensor, dropout: float, window: int | None) -> bool:
    fits = query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256
    return fits and not dropout and "scale" in _SETTINGS and (not window or "window_size" in _SETTINGS)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
AttentionInterface.register(FLASH, _flash)
