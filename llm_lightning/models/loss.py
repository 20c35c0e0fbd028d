"""The loss of a language model from its hidden states, without the logits of all tokens in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits that are held at once: as few as keep the matrix products efficient."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Σ -log softmax(h Wᵀ)[target], a scalar, of hidden states (targets, width), weights (vocabulary, width) and targets (targets,).

    Logits come from products in the type of the hidden states; softmax, loss and sums over chunks are in fp32, or fp64 for fp64.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # which would cast some of the products, and not those that are written in place
        kind = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return linear_cross_entropy(hidden.to(kind), weight.to(kind), targets)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward pass, while a chunk's logits are there: ∂loss/∂logits = softmax - one-hot."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows = max(1, LOGITS.get(hidden.device.type, 1 << 26) // len(weight))
        loss = hidden.new_zeros((), dtype=exact)
        backward = any(ctx.needs_input_grad)
        into_hidden = torch.empty_like(hidden) if backward else None
        into_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None  # a frozen head has none
        for start in range(0, len(hidden), rows):
            h, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = h @ weight.T
            p = logits.softmax(-1, dtype=exact)
            denominator = logits.amax(-1).to(exact) - p.amax(-1).log()  # the largest p never underflows
            loss += (denominator - logits.gather(1, target)[:, 0].to(exact)).sum()
            if into_hidden is not None:
                p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand(len(h), 1))
                slope = p.to(h.dtype)
                torch.mm(slope, weight, out=into_hidden[start : start + rows])
                if into_weight is not None:
                    into_weight += slope.T @ h
        ctx.save_for_backward(into_hidden, into_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        into_hidden, into_weight = ctx.saved_tensors
        return into_hidden * grad, None if into_weight is None else into_weight * grad, None
