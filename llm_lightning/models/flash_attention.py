"""Attention of a flat batch by GPU kernels: FlashAttention's, which takes lengths, or cuDNN's if the batch is a dense block."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.buckets import LONG

WIDEST = 256
"""The widest heads that FlashAttention's kernel takes (Dao 2023)."""


def has_kernel(q: Tensor, v: Tensor) -> bool:
    """Return whether FlashAttention's kernel takes these heads: in half precision, on a GPU of compute capability 8.0 or more."""
    if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
        return False
    same_width = q.shape[-1] == v.shape[-1]  # not in DeepSeek's latent attention
    return same_width and q.shape[-1] <= WIDEST and bool(torch.cuda.get_device_properties(q.device).major >= 8)


def by_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, causal: bool, window: int, scale: float
) -> Tensor:
    """Return (tokens, heads, dim) attention by FlashAttention (Dao 2023), which takes a flat batch, dropout and shared keys.

    torch's own `varlen_attn` calls the same kernel without its dropout. Long sequences of equal length go to cuDNN's if it is faster.
    """
    count = len(cu_seqlens) - 1
    if longest >= LONG and count * longest == len(q) and not 0 <= window < longest - 1:
        kind = q.shape[1], k.shape[1], q.shape[2], q.dtype, dropout > 0, causal
        if kind not in _cudnn_is_faster and not torch.compiler.is_compiling() and not torch.cuda.is_current_stream_capturing():
            _cudnn_is_faster[kind] = _measure(q, k, v, cu_seqlens, longest, dropout, causal, scale)
        if _cudnn_is_faster.get(kind, False):
            return _by_cudnn(q, k, v, count, dropout, causal, scale)
    return _by_flash(q, k, v, cu_seqlens, longest, dropout, causal, window, scale)


def _by_flash(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, causal: bool, window: int, scale: float
) -> Tensor:
    width = q.shape[-1]
    if remainder := width % 8:
        q, k, v = (F.pad(x, (0, 8 - remainder)) for x in (q, k, v))
    ahead = 0 if causal else window
    lengths = cu_seqlens, cu_seqlens, longest, longest
    results = torch.ops.aten._flash_attention_forward(  # private; read in torch 2.13
        q, k, v, *lengths, dropout, causal and window < 0, False, scale=scale, window_size_left=window, window_size_right=ahead
    )
    out: Tensor = results[0]
    return out[..., :width] if remainder else out


def _by_cudnn(q: Tensor, k: Tensor, v: Tensor, count: int, dropout: float, causal: bool, scale: float) -> Tensor:
    """Return (tokens, heads, dim) attention inside `count` sequences of equal length."""
    a, b, c = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, *repeat_heads(q, k, v)))
    # private; read in torch 2.13
    results = torch.ops.aten._scaled_dot_product_cudnn_attention(a, b, c, None, True, dropout, causal, False, scale=scale)
    out: Tensor = results[0]
    return out.transpose(1, 2).flatten(0, 1)


_cudnn_is_faster: dict[tuple[Any, ...], bool] = {}
"""The result for each (heads, heads of keys, dim, type, dropout, causality) of sequences of equal length in this process."""


def _measure(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, causal: bool, scale: float) -> bool:
    """Return whether cuDNN's kernel is faster than FlashAttention's forward and backward, with the same result: for blocks on Hopper it
    is up to 1.8 times as fast. The random state is restored."""
    state = torch.cuda.get_rng_state(q.device)

    def flash(p: float) -> Tensor:
        return _by_flash(a, b, c, cu_seqlens, longest, p, causal, -1, scale)

    def cudnn(p: float) -> Tensor:
        return _by_cudnn(a, b, c, len(cu_seqlens) - 1, p, causal, scale)

    def seconds(run: Any) -> float:
        for trial in range(6):
            if trial == 2:
                torch.cuda.synchronize(q.device)
                started = time.perf_counter()
            torch.autograd.grad(run(dropout), (a, b, c), slopes)
        torch.cuda.synchronize(q.device)
        return time.perf_counter() - started

    with torch.inference_mode(False), torch.enable_grad():
        a, b, c = (x.detach().clone().requires_grad_() for x in (q, k, v))
        slopes = torch.ones_like(a)
        try:
            off = float((cudnn(0.0) - flash(0.0)).detach().abs().max()) / max(float(v.detach().abs().max()), 1e-6)
            return off < 0.02 and seconds(cudnn) < seconds(flash)
        except RuntimeError:  # older versions of cuDNN refuse some shapes
            return False
        finally:
            torch.cuda.set_rng_state(state, q.device)


def repeat_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values (tokens, heads, dim) with as many heads as the queries have.

    SDPA can repeat heads with `enable_gqa`, but then it lacks some kernels without (length, length) memory: torch 2.8 has none for a CPU
    (807 MiB at 4,096 tokens, where equal heads take 28), and CUDA none for fp32.
    """
    times = q.shape[1] // k.shape[1]
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))
