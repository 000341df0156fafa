"""The package flash-attn as transformers calls it, computed by torch on a CPU: what is passed on is what is tested."""

import sys
from types import ModuleType

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as transformers_flash


def attention(query, key, value, scale, causal, window):
    """1 x tokens x heads x width, of one row or several of equal length."""
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    back = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    if window[0] >= 0:
        seen &= back <= window[0]
    return scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True).transpose(1, 2)


def pretend_flash_attention(monkeypatch, *, mixes=False):
    """Have transformers find flash-attn; where rows began in each call that was told so, as lists."""
    told = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        return attention(q, k, v, softmax_scale, causal, window_size)

    def flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert max(cu_seqlens_q.diff()) <= max_seqlen_q
        assert max(cu_seqlens_k.diff()) <= max_seqlen_k
        told.append(cu_seqlens_q.tolist())
        lengths = [len(q)] if mixes else cu_seqlens_q.diff().tolist()
        rows = zip(*(each[None].split(lengths, dim=1) for each in (q, k, v)), strict=True)
        return torch.cat([attention(*row, softmax_scale, causal, window_size) for row in rows], dim=1)[0]

    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_with_kvcache = None
    padding.pad_input, padding.unpad_input = transformers_flash._pad_input, transformers_flash._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(transformers_flash, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(transformers_flash, "_loaded_implementation", None)
    return told


def with_flash_attention(model):
    """The model with FlashAttention, which transformers itself allows on a GPU alone."""
    model.config._attn_implementation_internal = "flash_attention_2"
    return model
