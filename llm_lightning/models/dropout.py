"""Dropout that does not wait for random numbers: on a CPU torch draws one after the other, and a fifth of a small model's step goes by.

Here one draw of 64 bits decides over four elements: p is rounded to 1/65,536.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero with probability p, else x / (1 - p), of the same shape; x itself where p is 0."""
    if p == 0.0:
        return x
    return x * kept(x.detach(), p) if x.device.type == "cpu" else F.dropout(x, p)


@torch.library.custom_op("llm_lightning::kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def kept(like: Tensor, p: float) -> Tensor:
    """Independent factors of the shape and type of `like`: 0 with probability p, else 1 / (1 - p); from torch's generator."""
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count].view(like.shape)
    factors = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(bits, round(p * 2**16) - 2**15, out=factors)
    return factors.mul_(1 / (1 - p))


@kept.register_fake
def _(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


class Dropout(nn.Dropout):
    """`nn.Dropout` with the function above."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def replace(model: nn.Module) -> None:
    """Have every dropout of the model be ours; weights and their names stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
