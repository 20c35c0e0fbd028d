"""LoRA's product without its passes over tensors as large as the result (Hu et al. 2022, equation 3).

peft computes x Wᵀ + b, the product of the low rank, its multiple, and the sum: two passes over the whole result, and in the backward
pass one over its gradient and one over that of x. Here matrix products add to the result, and to the gradient, as they write it. Of
full-size tensors, x alone is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class LoraLinear(peft.tuners.lora.Linear):
    """peft's LoRA layer, with one product for a frozen matrix and its adapter; all else is computed by peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        name = self.active_adapters[0]
        weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
        product: Tensor = _AdaptedProduct.apply(
            x, weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return product

    def _is_plain(self, x: Tensor) -> bool:
        """Return whether one adapter without dropout applies to a frozen matrix, and all are of one type."""
        base: Any = self.base_layer
        if (
            type(base) not in (nn.Linear, Conv1D)
            or base.weight.requires_grad
            or (base.bias is not None and base.bias.requires_grad)
        ):
            return False
        if self.disable_adapters or self.merged or self.lora_variant or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or not isinstance(self.lora_dropout[name], nn.Identity) or self.lora_bias[name]:
            return False
        types = {x.dtype, base.weight.dtype, self.lora_A[name].weight.dtype, self.lora_B[name].weight.dtype}
        return len(types) == 1 and not torch.is_autocast_enabled(x.device.type)


class _AdaptedProduct(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ for x (…, in), W (out, in), b (out), A (rank, in), B (out, rank); W and b are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.flatten(0, -2)
        inner = rows @ a.t()
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return F.linear(rows, weight, bias).addmm_(inner, b.t(), alpha=scale).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        inner_gradient = (gradient @ b).mul_(ctx.scale)
        of_x = (gradient @ weight).addmm_(inner_gradient, a).view(x.shape) if ctx.needs_input_grad[0] else None
        of_a = inner_gradient.t() @ x.flatten(0, -2)
        of_b = (gradient.t() @ inner).mul_(ctx.scale)
        return of_x, None, None, of_a, of_b, None


def replace(model: nn.Module) -> None:
    """Make every LoRA layer of peft's over a plain matrix a `LoraLinear`. Names of parameters do not change."""
    for module in model.modules():
        if type(module) is peft.tuners.lora.Linear:
            module.__class__ = LoraLinear
