"""Attention inside each sequence of a flat batch, and nowhere else: the one function that transformers' models are given for it.

transformers calls it with queries, keys and values of shape (1, heads, tokens, dim) and with the keywords that the model itself was
called with, `cu_seq_lens_q` among them. Without that keyword it refuses to work, for then documents would see each other.

On a CPU the sequences of one length are one rectangle, without padding; on a CUDA device torch's variable-length kernel takes the
batch as it is. What neither can do (dropout of attention weights on CUDA, fp32 there) goes through SDPA on rows
that are padded inside attention alone.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llm_lightning.models.dropout import dropout as drop

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
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, heads, dim)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = bool(getattr(module, "is_causal", False))
    window = -1 if sliding_window is None else sliding_window - 1  # how far a token looks; transformers counts the token itself
    if q.device.type == "cpu":
        out = by_length(q, k, v, cu_seq_lens_q, dropout, causal, window, scale)
    elif q.device.type == "cuda" and not dropout and q.dtype != torch.float32:
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
    sizes = [count * length for count, length in shapes]
    shared, outs = q.shape[1] // k.shape[1], []
    for shape, a, b, c in zip(shapes, (q * scale).split(sizes), k.split(sizes), v.split(sizes), strict=True):
        a, b, c = (x.unflatten(0, shape).transpose(1, 2) for x in (a, b, c))  # (sequences, heads, length, dim)
        if shared > 1:
            b, c = b.repeat_interleave(shared, 1), c.repeat_interleave(shared, 1)
        allowed = visible(shape[1], causal, window, q.device)
        if not dropout and shape[1] > LONG[q.dtype]:
            masked = {"is_causal": True} if causal and window < 0 else {"attn_mask": allowed}
            out = F.scaled_dot_product_attention(a, b, c, scale=1.0, **masked)
        else:
            if shape[1] <= SHORT and q.dtype != torch.float64:
                a, b, c = a.float(), b.float(), c.float()
            logits = a @ b.transpose(2, 3)
            if allowed is not None:
                logits = logits.masked_fill(~allowed, -math.inf)
            out = (drop(logits.softmax(-1), dropout) @ c).to(q.dtype)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


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
    if allowed is not None:
        mask = mask & (allowed | torch.eye(longest, dtype=torch.bool, device=q.device))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(padded(q), padded(k), padded(v), mask, dropout_p=dropout, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[place]
