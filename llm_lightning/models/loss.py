"""The loss of a language model from its hidden states, without the logits of all tokens in memory at once.

torch's own chunked `linear_cross_entropy` came with 2.13; our oldest torch is 2.8, and on GPUs we use 2.11. On a CPU in bf16 it takes 2.1
times as long as ours and rounds the loss to bf16: 0.3% off with 50,257 classes, ours 0.001%. In fp32 it takes 0.9 of the time.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.data.masking import IGNORED

LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits in memory at a time: as few as keep the matrix products efficient."""
ALIGNED = 64
"""A GPU multiplies matrices whose rows begin at a multiple of 16 bytes faster: a vocabulary is padded to a multiple of this size."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return Σ -log softmax(h Wᵀ)[target], a scalar, of hidden states (targets, width), weights (vocabulary, width) and targets (targets,).

    Logits come from products in the type of the hidden states; softmax, loss and sums over chunks are in fp32, or fp64 for fp64.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # it would cast some of the products, but not those written in place
        kind = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return linear_cross_entropy(hidden.to(kind), weight.to(kind), targets)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets)
    return loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return Σ -log softmax(logits)[target], a scalar, of logits (targets, vocabulary); softmax and sums are in fp32, or fp64 for fp64."""
    if logits.device.type == "cuda" and logits.dtype in (torch.bfloat16, torch.float16):
        loss: Tensor = _CrossEntropy.apply(logits, targets)
        return loss
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact, targets, reduction="sum", ignore_index=IGNORED)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is computed in the forward pass, in the type of the logits: no logits exist in fp32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        real = targets != IGNORED
        losses, slope = _compile_fused()(logits, targets.clamp(min=0), logits.shape[1])
        ctx.save_for_backward(slope, real)
        return (losses * real).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        slope, real = ctx.saved_tensors
        return slope * (grad * real)[:, None].to(slope.dtype), None


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy. Gradients are computed in the forward pass, chunk by chunk: ∂loss/∂logits = softmax - one-hot."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        on_gpu = hidden.device.type == "cuda"
        vocabulary = len(weight)
        if on_gpu and vocabulary % ALIGNED:
            weight = F.pad(weight, (0, 0, 0, -vocabulary % ALIGNED))
        rows = max(1, LOGITS.get(hidden.device.type, 1 << 26) // len(weight))
        loss = hidden.new_zeros((), dtype=exact)
        backward = any(ctx.needs_input_grad)
        into_hidden = torch.empty_like(hidden) if backward else None
        into_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None  # a frozen head has none
        for start in range(0, len(hidden), rows):
            h, target = hidden[start : start + rows], targets[start : start + rows]
            real = target != IGNORED
            logits = h @ weight.T
            if on_gpu and exact == torch.float32:
                losses, slope = _compile_fused(fixed_size=len(h) == rows)(logits, target.clamp(min=0), vocabulary)
            else:
                losses, slope = losses_and_slope(logits, target.clamp(min=0))
            loss += (losses * real).sum()
            if into_hidden is not None:
                torch.mm(slope, weight, out=into_hidden[start : start + rows])
                into_hidden[start : start + rows] *= real[:, None]
                if into_weight is not None:
                    into_weight += slope.T @ (h * real[:, None])
        ctx.save_for_backward(into_hidden, None if into_weight is None else into_weight[:vocabulary])
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        into_hidden, into_weight = ctx.saved_tensors
        return into_hidden * grad, None if into_weight is None else into_weight * grad, None


def losses_and_slope(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows,) -log softmax(logits)[target], and the gradient of their sum by the logits (rows, vocabulary), in their type."""
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    place = targets[:, None]
    p = logits.softmax(-1, dtype=exact)
    denominator = logits.amax(-1).to(exact) - p.amax(-1).log()  # the largest p never underflows
    losses = denominator - logits.gather(1, place)[:, 0].to(exact)
    p.scatter_add_(1, place, p.new_full((1, 1), -1.0).expand(len(logits), 1))
    return losses, p.to(logits.dtype)


def fused_losses_and_slope(logits: Tensor, targets: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the same as `losses_and_slope`, for logits whose columns behind the vocabulary are padding.

    It is meant to be compiled: logits are then read twice and the gradient is written once, without a tensor in fp32.
    """
    column = torch.arange(logits.shape[1], device=logits.device)
    exact = torch.where(column < vocabulary, logits.float(), -torch.inf)
    denominator = exact.logsumexp(-1)
    losses = denominator - logits.gather(1, targets[:, None])[:, 0].float()
    slope = (exact - denominator[:, None]).exp() - (column == targets[:, None]).float()
    return losses, slope.to(logits.dtype)


@functools.cache
def _compile_fused(fixed_size: bool = False) -> Any:
    """Return `fused_losses_and_slope`, compiled if a compiler is available.

    Full chunks, which all have the same size, have their own kernel: it takes two thirds of the time of a kernel for any size (H200).
    """
    return torch.compile(fused_losses_and_slope, dynamic=not fixed_size) if has_compiler() else fused_losses_and_slope


@functools.cache
def has_compiler() -> bool:
    """Return whether torch.compile can make GPU kernels here: it needs Triton."""
    return importlib.util.find_spec("triton") is not None
