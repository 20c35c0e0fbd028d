"""Attention inside each sequence of a flat batch, and nowhere else: the one function that transformers' models are given for it.

transformers calls it with queries, keys and values of shape (1, heads, tokens, dim) and with the keywords that the model itself was
called with, `cu_seq_lens_q` among them. Without that keyword it refuses to work, for then documents would see each other.

On a CPU the sequences of one length are one rectangle, without padding; on a CUDA device torch's variable-length kernel takes the
batch as it is. What neither can do (dropout of attention weights on CUDA, fp32 or an older GPU there) goes through SDPA on rows
that are padded inside attention alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llm_lightning.models.dropout import draws, factors

NAME = "padding_free"

SHORT = 128
"""Tokens up to which half-precision attention is computed in fp32 on a CPU: oneDNN makes a bf16 kernel anew for every number and length
of sequences, which takes longer than these small products do."""
LONG = {torch.float32: 128, torch.float64: 128, torch.bfloat16: 1024, torch.float16: 1024}
"""Tokens above which SDPA's kernel beats plain products on a CPU; below, it is up to six times slower in bf16 (torch 2.13)."""


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
    **others: Any,
) -> tuple[Tensor, None]:
    """(1, tokens, heads, dim) attention of queries (1, heads, tokens, dim); keys and values may have fewer heads."""
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise ValueError("this model takes flat batches; for padded ones and for generation, set_attn_implementation('sdpa') first")
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # (tokens, heads, dim); autocast turns in fp32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False))
    window = -1 if sliding_window is None else sliding_window - 1  # how far a token looks; transformers counts the token itself
    if q.device.type == "cpu":
        out = by_length(q, k, v, cu_seq_lens_q, dropout, causal, window, scale)
    elif q.device.type == "cuda" and not dropout and q.dtype != torch.float32 and _varlen(q.device):
        from torch.nn.attention.varlen import varlen_attn

        span = (window, 0 if causal else window)
        grouped = q.shape[1] != k.shape[1]
        out = varlen_attn(
            q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scale, window_size=span, enable_gqa=grouped
        )
    else:
        out = in_rows(q, k, v, cu_seq_lens_q, max_length_q, dropout, causal, window, scale)
    return out[None], None


def given(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """The mask that transformers would make: that of padding, which `attention` then refuses."""
    return attention_mask


def _varlen(device: torch.device) -> bool:
    """Whether a GPU has torch's variable-length kernel: from compute capability 8.0 on. In terms that torch.compile sees through."""
    return bool(torch.cuda.get_device_properties(device).major >= 8)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, given)


def visible(length: int, causal: bool, window: int, device: torch.device) -> Tensor | None:
    """(length, length) bool, true where a query may look; None where it may look everywhere."""
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
    """(tokens, heads, dim): sequences of one length that lie side by side are one rectangle."""
    shapes = [(len(list(run)), length) for length, run in itertools.groupby(cu_seqlens.diff().tolist())]
    long = 0 if dropout else next((i for i, (_, length) in enumerate(shapes) if length <= LONG[q.dtype]), len(shapes))
    outs, start = [], 0
    for count, length in shapes[:long]:
        a, b, c = (x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        masked: dict[str, Any] = {"attn_mask": visible(length, causal, window, q.device)}
        if causal and window < 0:
            masked = {"is_causal": True}
        out = F.scaled_dot_product_attention(a, b, c, scale=scale, enable_gqa=q.shape[1] != k.shape[1], **masked)
        outs.append(out.transpose(1, 2).flatten(0, 1))
        start += count * length
    if long < len(shapes):
        rest = (q[start:], k[start:], v[start:]) if start else (q, k, v)  # the gradient of a slice is a cleared tensor
        outs.append(_Rectangles.apply(*rest, shapes[long:], dropout, causal, window, scale))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


class _Rectangles(torch.autograd.Function):
    """Attention as plain products, its gradients written down: small matrices are quick to multiply, and much else is not.

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
        out, heads, saved = q.new_empty(q.shape), q.shape[1], []
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
            kept = None if bits is None else factors(bits[drawn : drawn + logits.numel()], dropout, logits)
            drawn += logits.numel()
            _write(out[rows], torch.bmm(probabilities if kept is None else probabilities * kept, c), count)
            if any(ctx.needs_input_grad):
                saved.append((a, b, c, probabilities, kept))
        ctx.save_for_backward(*(tensor for group in saved for tensor in group))
        ctx.shapes, ctx.scale, ctx.sizes = shapes, scale, [x.shape for x in (q, k, v)]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        into = [grad.new_empty(size) for size in ctx.sizes]
        saved = iter(ctx.saved_tensors)
        for rows, count, _ in _spans(ctx.shapes):
            a, b, c, probabilities, kept = (next(saved) for _ in range(5))
            g = _rectangle(grad[rows], count, grad.shape[1], a.dtype)
            slopes, dropped = torch.bmm(g, c.mT), probabilities
            if kept is not None:
                slopes, dropped = slopes.mul_(kept), probabilities * kept
            s = torch._softmax_backward_data(slopes, probabilities, -1, slopes.dtype)
            none = s.new_empty(())
            into_q = torch.baddbmm(none, s, b, beta=0, alpha=ctx.scale)
            into_k = torch.baddbmm(none, s.mT, a, beta=0, alpha=ctx.scale)
            for x, gradient in zip(into, (into_q, into_k, torch.bmm(dropped.mT, g)), strict=True):
                _write(x[rows], gradient, count)
        return *into, None, None, None, None, None


def _spans(shapes: list[tuple[int, int]]) -> Iterator[tuple[slice, int, int]]:
    """(tokens, sequences, length) of each rectangle."""
    start = 0
    for count, length in shapes:
        yield slice(start, start + count * length), count, length
        start += count * length


def _rectangle(x: Tensor, count: int, heads: int, kind: torch.dtype) -> Tensor:
    """(sequences · heads, length, dim) of x (sequences · length, its heads, dim): copied once, whatever has to change."""
    rows = x.unflatten(0, (count, -1)).transpose(1, 2).unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1, -1)
    return torch.empty(rows.shape, dtype=kind).copy_(rows).flatten(0, 2)


def _write(into: Tensor, rectangle: Tensor, count: int) -> None:
    """The inverse of `_rectangle`; where heads share a key, their gradients are added up."""
    rows = rectangle.unflatten(0, (count, into.shape[1], -1))
    rows = rows[:, :, 0] if rows.shape[2] == 1 else rows.sum(2)
    into.unflatten(0, (count, -1)).copy_(rows.transpose(1, 2))


def in_rows(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, dropout: float, causal: bool, window: int, scale: float
) -> Tensor:
    """(tokens, heads, dim): SDPA over one padded row a sequence."""
    tokens, count = len(q), len(cu_seqlens) - 1
    lengths = cu_seqlens.diff()
    row = torch.repeat_interleave(torch.arange(count, device=q.device), lengths, output_size=tokens)
    place = row * longest + torch.arange(tokens, device=q.device) - cu_seqlens[:-1][row]

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(count * longest, *x.shape[1:]).index_copy(0, place, x)
        return rows.unflatten(0, (count, longest)).transpose(1, 2)

    mask = (torch.arange(longest, device=q.device) < lengths[:, None])[:, None, None, :]
    allowed = visible(longest, causal, window, q.device)
    if allowed is not None:  # and padding sees itself: a row that sees nothing has no softmax
        mask = (mask & allowed) | torch.eye(longest, dtype=torch.bool, device=q.device)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(padded(q), padded(k), padded(v), mask, dropout_p=dropout, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[place]
