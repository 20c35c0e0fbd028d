"""Attention inside each sequence of a flat batch, as one function for all models of transformers.

transformers calls it with queries, keys and values of shape (1, heads, tokens, dim) and with the keyword arguments of the model's own
call, such as `cu_seq_lens_q`. Without that keyword it raises an error, as documents would see each other.

On a CPU sequences of one length form one rectangle, without padding. On a CUDA device FlashAttention's variable-length kernel takes
the flat batch, dropout included; fp32 and older GPUs use SDPA on rows that are padded inside attention alone. Capped logits and
sinks, which no kernel supports, are plain products.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from llm_lightning.models.dropout import draws, factors
from llm_lightning.models.flash_attention import by_flash_attention, has_kernel, repeat_heads

NAME = "padding_free"

SHORT = 128
"""Tokens up to which half-precision attention is computed in fp32 on a CPU: oneDNN builds a new bf16 kernel for every number and length
of sequences, which takes longer than these small products."""
LONG = {torch.float32: 128, torch.float64: 128, torch.bfloat16: 1024, torch.float16: 1024}
"""Tokens above which SDPA's kernel beats plain products on a CPU; below, it is up to six times slower in bf16 (torch 2.13)."""

UNSUPPORTED = ("position_bias", "indices", "block_indices", "sinks")
"""Arguments by which models change attention in ways that this module does not compute."""

CHUNK = 1024
"""Tokens up to which a sliding window is a mask over whole rows; longer rows are computed in chunks of this many queries."""


class LengthsMissing(ValueError):
    """Attention was called without the lengths of a flat batch, or with padded rows."""

    def __init__(self) -> None:
        super().__init__("this model takes flat batches; for padded ones and for generation, set_attn_implementation('sdpa') first")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return (1, tokens, heads, dim) attention of queries (1, heads, tokens, dim); keys and values may have fewer heads.

    `softcap` c replaces logits by c·tanh(logits / c) (Gemma 2). `s_aux` (heads,) is the logit of a sink that each query may attend to
    instead of a token (gpt-oss). Raises LengthsMissing for a batch without its lengths, ValueError for `UNSUPPORTED` arguments.
    """
    if cu_seq_lens_q is None and _lengths is not None:
        cu_seq_lens_q, max_length_q = _lengths
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise LengthsMissing
    if refused := [name for name in UNSUPPORTED if others.get(name) is not None]:
        raise ValueError(f"its attention takes {refused[0]}, which flat batches do not have")
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (tokens, heads, dim); autocast turns in fp32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    window = -1 if sliding_window is None else sliding_window - 1  # how far a token looks; transformers counts the token itself
    lengths, longest, options = cu_seq_lens_q, max_length_q, (dropout, causal, window, scale)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (tokens, heads, dim) attention by the function that suits the device and the arguments."""
        if softcap is not None or s_aux is not None:
            return with_changed_logits(q, k, v, lengths, *options, softcap, s_aux)
        if q.device.type == "cpu":
            return by_length(q, k, v, lengths, *options)
        if has_kernel(q, v):
            return by_flash_attention(q, k, v, lengths, longest, *options)
        return in_rows(q, k, v, lengths, longest, *options)

    if not torch.is_autocast_enabled(q.device.type):
        return attend(q, k, v)[None], None
    kind = torch.get_autocast_dtype(q.device.type)
    with torch.autocast(q.device.type, enabled=False):  # it would cast tensors that are written in place, or are in fp32 on purpose
        return attend(*(x.to(kind) for x in (q, k, v)))[None], None


_lengths: tuple[Tensor, int] | None = None


@contextlib.contextmanager
def lengths_at_hand(cu_seqlens: Tensor, longest: int) -> Iterator[None]:
    """Provide the lengths of a flat batch to attention within: some models drop keyword arguments that they do not know."""
    global _lengths
    _lengths = cu_seqlens, longest
    try:
        yield
    finally:
        _lengths = None


def contexts_of_lengths() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Return the contexts of a layer's forward pass and of its recomputation, which needs the same lengths."""
    return contextlib.nullcontext(), contextlib.nullcontext() if _lengths is None else lengths_at_hand(*_lengths)


# No function for masks is registered with it, so transformers makes no mask, and does not read positions back from a GPU to find out
# whether it needs one. A mask of padding reaches `attention` without lengths, which raises an error.
AttentionInterface.register(NAME, attention)


def visible(length: int, causal: bool, window: int, device: torch.device) -> Tensor | None:
    """Return (length, length) bool, true where a query may attend to a key; None if every query may attend to every key."""
    far = length if window < 0 else window
    if not causal and far >= length - 1:
        return None
    place = torch.arange(length, device=device)
    behind = place[:, None] - place[None, :]
    return (behind <= far) & (behind >= (0 if causal else -far))


@torch.compiler.disable
def by_length(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, dropout: float, causal: bool, window: int, scale: float
) -> Tensor:
    """Return (tokens, heads, dim) attention; adjacent sequences of one length form one rectangle."""
    shapes = [(len(list(run)), length) for length, run in itertools.groupby(cu_seqlens.diff().tolist())]
    long = 0 if dropout else next((i for i, (_, length) in enumerate(shapes) if length <= LONG[q.dtype]), len(shapes))
    outs, start = [], 0
    for count, length in shapes[:long]:
        rows = slice(start, start + count * length)
        parts = (q[rows], *repeat_heads(q[rows], k[rows], v[rows]))
        a, b, c = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)
        outs.append(dense(a, b, c, causal, window, scale).transpose(1, 2).flatten(0, 1))
        start += count * length
    if long < len(shapes):
        rest = (q[start:], k[start:], v[start:]) if start else (q, k, v)  # the gradient of a slice is a cleared tensor
        outs.append(_Rectangles.apply(*rest, shapes[long:], dropout, causal, window, scale))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


class _Rectangles(torch.autograd.Function):
    """Attention as plain products with explicit gradients: for small matrices products are fast, and most other operations are not.

    P = softmax(scale Q Kᵀ), O = D V where D is P with some elements dropped; ∂Q = scale S K and ∂K = scale Sᵀ Q where S is the gradient
    of the logits, ∂V = Dᵀ ∂O.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shapes: list[tuple[int, int]],
        dropout: float,
        causal: bool,
        window: int,
        scale: float,
    ) -> Tensor:
        out, heads, saved = q.new_empty(*q.shape[:2], v.shape[-1]), q.shape[1], []
        bits, drawn = draws(heads * sum(count * length**2 for count, length in shapes)) if dropout else None, 0
        for rows, count, length in _spans(shapes):
            half = q.dtype in (torch.bfloat16, torch.float16)
            kind = torch.float32 if half and length <= SHORT else q.dtype
            a, b, c = (_rectangle(x[rows], count, heads, kind) for x in (q, k, v))
            logits = torch.baddbmm(a.new_empty(()), a, b.mT, beta=0, alpha=scale)
            allowed = visible(length, causal, window, q.device)
            if allowed is not None:
                logits.masked_fill_(~allowed, -math.inf)
            probabilities = logits.softmax(-1)
            dropout_factors = None if bits is None else factors(bits[drawn : drawn + logits.numel()], dropout, logits)
            drawn += logits.numel()
            _write(out[rows], torch.bmm(probabilities if dropout_factors is None else probabilities * dropout_factors, c), count)
            if any(ctx.needs_input_grad):
                saved.append((a, b, c, probabilities, dropout_factors))
        ctx.save_for_backward(*(tensor for group in saved for tensor in group))
        ctx.shapes, ctx.scale, ctx.sizes = shapes, scale, [x.shape for x in (q, k, v)]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_autocast_enabled("cpu"):  # a step may run its backward pass under autocast, which would cast the products
            with torch.autocast("cpu", enabled=False):
                return _Rectangles.backward(ctx, grad)
        into = [grad.new_empty(size) for size in ctx.sizes]
        saved = iter(ctx.saved_tensors)
        for rows, count, _ in _spans(ctx.shapes):
            a, b, c, probabilities, dropout_factors = (next(saved) for _ in range(5))
            g = _rectangle(grad[rows], count, grad.shape[1], a.dtype)
            slopes, dropped = torch.bmm(g, c.mT), probabilities
            if dropout_factors is not None:
                slopes, dropped = slopes.mul_(dropout_factors), probabilities * dropout_factors
            s = torch._softmax_backward_data(slopes, probabilities, -1, slopes.dtype)  # private; read in torch 2.13
            none = s.new_empty(())
            into_q = torch.baddbmm(none, s, b, beta=0, alpha=ctx.scale)
            into_k = torch.baddbmm(none, s.mT, a, beta=0, alpha=ctx.scale)
            for x, gradient in zip(into, (into_q, into_k, torch.bmm(dropped.mT, g)), strict=True):
                _write(x[rows], gradient, count)
        return *into, None, None, None, None, None


def _spans(shapes: list[tuple[int, int]]) -> Iterator[tuple[slice, int, int]]:
    """Yield (slice of tokens, number of sequences, length) of each rectangle."""
    start = 0
    for count, length in shapes:
        yield slice(start, start + count * length), count, length
        start += count * length


def _rectangle(x: Tensor, count: int, heads: int, kind: torch.dtype) -> Tensor:
    """Return (sequences · heads, length, dim) of x (sequences · length, its heads, dim) in type `kind`, by a single copy."""
    rows = x.unflatten(0, (count, -1)).transpose(1, 2).unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1, -1)
    return torch.empty(rows.shape, dtype=kind).copy_(rows).flatten(0, 2)


def _write(into: Tensor, rectangle: Tensor, count: int) -> None:
    """Write a rectangle back, as the inverse of `_rectangle`; gradients of heads that share a key are added up."""
    rows = rectangle.unflatten(0, (count, into.shape[1], -1))
    rows = rows[:, :, 0] if rows.shape[2] == 1 else rows.sum(2)
    into.unflatten(0, (count, -1)).copy_(rows.transpose(1, 2))


def in_rows(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, causal: bool, window: int, scale: float
) -> Tensor:
    """Return (tokens, heads, dim) attention by SDPA, with one padded row a sequence."""
    tokens, count = len(q), len(cu_seqlens) - 1
    lengths = cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(count, device=q.device), lengths, output_size=tokens)
    place = row * longest + torch.arange(tokens, device=q.device) - cu_seqlens[:-1][row]

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(count * longest, *x.shape[1:]).index_copy(0, place, x)
        return rows.unflatten(0, (count, longest)).transpose(1, 2)

    k, v = repeat_heads(q, k, v)
    real = torch.arange(longest, device=q.device) < lengths[:, None]
    out = dense(padded(q), padded(k), padded(v), causal, window, scale, dropout, real)
    return out.transpose(1, 2).flatten(0, 1)[place]


@torch.compiler.disable  # lengths are read, so that each would have its own graph
def with_changed_logits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    dropout: float,
    causal: bool,
    window: int,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return (tokens, heads, dim) attention with capped logits or sinks, which no kernel of torch supports.

    It multiplies `CHUNK` queries and the keys in their reach at a time. Products of longer rows are computed again in the backward
    pass, so that memory does not grow with length².
    """
    k, v = repeat_heads(q, k, v)
    outs, start = [], 0
    for length, rows in itertools.groupby(cu_seqlens.diff().tolist()):
        count = len(list(rows))
        part = slice(start, start + count * length)
        a, b, c = (x[part].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))  # (sequences, heads, length, dim)
        parts = []
        for first in range(0, length, CHUNK):
            queries = torch.arange(first, min(first + CHUNK, length), device=q.device)
            begin = 0 if window < 0 else max(0, first - window)
            end = int(queries[-1]) + 1 if causal else length if window < 0 else min(length, int(queries[-1]) + 1 + window)
            behind = queries[:, None] - torch.arange(begin, end, device=q.device)
            far = length if window < 0 else window
            allowed = (behind <= far) & (behind >= (0 if causal else -far))
            arguments = (
                a[:, :, first : first + CHUNK],
                b[:, :, begin:end],
                c[:, :, begin:end],
                allowed,
                dropout,
                scale,
                softcap,
                sinks,
            )
            if length > CHUNK and torch.is_grad_enabled():
                parts.append(checkpoint(_changed_product, *arguments, use_reentrant=False))
            else:
                parts.append(_changed_product(*arguments))
        outs.append(torch.cat(parts, 2).transpose(1, 2).flatten(0, 1))
        start += count * length
    return torch.cat(outs)


def _changed_product(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, dropout: float, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Return (sequences, heads, queries, dim) of queries (sequences, heads, queries, dim), keys and values, and allowed (queries, keys)."""
    logits = (q @ k.mT) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    logits = logits.masked_fill(~allowed, -math.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:3], 1)], -1)
    probabilities = logits.softmax(-1)[..., : k.shape[2]].to(v.dtype)
    return F.dropout(probabilities, dropout) @ v if dropout else probabilities @ v


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int,
    scale: float,
    dropout: float = 0.0,
    real: Tensor | None = None,
) -> Tensor:
    """Compute SDPA of (rows, heads, length, dim), with equal numbers of heads; its memory does not grow with length².

    `real` (rows, length) is false for the padding at the end of rows; without it no row has padding. Results for padding are
    arbitrary, but finite.
    """
    length = q.shape[2]
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scale}
    if 0 <= window < length - 1 and length > CHUNK:
        return _in_chunks(q, k, v, causal, window, real, options)
    if causal and not 0 <= window < length - 1:  # a token sees those before it, and padding comes after
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    mask = visible(length, causal, window, q.device)
    if real is not None:
        keys = real[:, None, None, :]  # under a window padding sees itself: a row that sees nothing has no softmax
        mask = keys if mask is None else (mask & keys) | torch.eye(length, dtype=torch.bool, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, mask, **options)


@torch.compiler.disable  # it would be recompiled for each number of chunks
def _in_chunks(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, real: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Compute attention under a sliding window, for `CHUNK` queries and the keys in their reach at a time."""
    length, ahead = q.shape[2], 0 if causal else window
    behind = torch.arange(CHUNK, device=q.device)[:, None] - torch.arange(-window, CHUNK + ahead, device=q.device)
    reach = (behind <= window) & (behind >= -ahead)
    added = torch.zeros(reach.shape, dtype=q.dtype, device=q.device).masked_fill_(~reach, -math.inf)
    outs = []
    for start, part in zip(range(0, length, CHUNK), q.split(CHUNK, 2), strict=True):
        first, last = max(0, start - window), min(length, start + CHUNK + ahead)
        place = (slice(part.shape[2]), slice(first - start + window, last - start + window))
        mask = added[place]  # a view: SDPA keeps it for the gradient, and would keep a bool mask as a copy in floats
        if real is not None:
            mask = (reach[place] & real[:, None, None, first:last]) | (behind[place] == 0)
        outs.append(F.scaled_dot_product_attention(part, k[:, :, first:last], v[:, :, first:last], mask, **options))
    return torch.cat(outs, 2)
