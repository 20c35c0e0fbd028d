"""Attention between the sequences of a packed row: none."""

from __future__ import annotations

import torch
from torch import Tensor


def isolated(segments: Tensor, implementation: str | None) -> Tensor:
    """(rows, 1, time, time) mask for a causal model: a token sees the tokens of its own sequence up to itself.

    `segments` (rows, time) numbers the sequences of each row. transformers takes a mask of four dimensions as it is: true where
    `sdpa` may look; `eager` adds its mask to the scores. Any other way of telling documents apart leaks in one setting or another.
    """
    time = segments.shape[1]
    past = torch.ones(time, time, dtype=torch.bool, device=segments.device).tril()
    allowed = (segments[:, :, None] == segments[:, None, :]) & past
    if implementation == "sdpa":
        return allowed[:, None]
    return torch.zeros(allowed.shape, device=segments.device).masked_fill(~allowed, torch.finfo(torch.bfloat16).min)[:, None]
