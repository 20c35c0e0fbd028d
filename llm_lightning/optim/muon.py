"""Muon for the matrices of the transformer's layers, AdamW for all else (Jordan et al. 2024; Liu et al. 2025).

`torch.optim.Muon` makes the same steps, but torch 2.8 lacks it and it launches the kernels of each matrix: 48 times in GPT-2 124M, where
ours has 4 shapes. On one CPU core (torch 2.13) its step takes 1.03 to 1.1 times as long for the tiny models, and 0.84 for GPT-2.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from llm_lightning.config.signatures import Range
from llm_lightning.machine import bf16_unit
from llm_lightning.models.layers import layers
from llm_lightning.optim.groups import decay_groups

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024): the steepest at zero, which takes singular values into 0.7 to 1.2."""
ITERATIONS = 5


def muon(
    model: nn.Module,
    *,
    lr: Annotated[float, Range(0, open_low=True)],
    weight_decay: Annotated[float, Range(0)] = 0.1,
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.95,
    betas: tuple[Annotated[float, Range(0, 1, open_high=True)], Annotated[float, Range(0, 1, open_high=True)]] = (0.9, 0.95),
    eps: Annotated[float, Range(0, open_low=True)] = 1e-8,
) -> torch.optim.Optimizer:
    """Build Muon for the matrices of the layers, and AdamW for all other parameters.

    One learning rate `lr` serves both: an orthogonal step is scaled to the size of AdamW's, 0.2 √max(rows, columns) (Liu et al. 2025).
    `momentum` is the decay rate of Muon's average of gradients; `betas` and `eps` are AdamW's. `weight_decay` times the rate is the share
    by which a step shrinks matrices.
    """
    hidden = {id(p) for layer in layers(model) for p in layer.parameters() if p.ndim == 2}
    groups = [
        {**group, "params": [p for p in group["params"] if (id(p) in hidden) == inside], "muon": inside}
        for group in decay_groups(model, weight_decay)
        for inside in (True, False)
    ]
    return Muon([group for group in groups if group["params"]], lr=lr, momentum=momentum, betas=(betas[0], betas[1]), eps=eps)


class Muon(torch.optim.AdamW):
    """AdamW, except for the groups of matrices with `muon` set: their step is their momentum made orthogonal.

    Matrices of one shape are iterated on together, in bf16 if the hardware multiplies it.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make a step, except after an overflow of gradients in fp16: GradScaler tells a fused optimizer by the attribute `found_inf`."""
        loss = None if closure is None else closure()
        if getattr(self, "found_inf", None):
            return loss
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._orthogonal_step(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[tuple(parameter.shape)].append(parameter)
        for shape, parameters in alike.items():
            updates = orthogonal(torch.stack([_gather(self._nesterov(p)) for p in parameters]))
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(_spread(update.to(parameter.dtype), parameter), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _nesterov(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW looks for one in every state that it loads
        gradient = parameter.grad
        assert gradient is not None
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - self.momentum), self.momentum)

    def hint(self, tokens: int) -> str | None:
        """Return a hint if Muon is costly: its products take about 5 · width / tokens of a forward and backward pass."""
        width = max(min(p.shape) for group in self.param_groups if group["muon"] for p in group["params"])
        share = ITERATIONS * width / tokens
        if share < 0.1:
            return None
        return f"muon adds about {share:.0%} to a step of {tokens:,} tokens; larger steps (batch.sequences) make it cheaper"


def orthogonal(matrices: Tensor) -> Tensor:
    """Return (count, rows, columns) U S' Vᵀ of each matrix U S Vᵀ, its singular values S' near one: Newton-Schulz (Jordan et al. 2024)."""
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16) if bf16_unit(matrices.device.type) else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def _gather(update: Tensor) -> Tensor:
    return update.full_tensor() if isinstance(update, DTensor) else update


def _spread(update: Tensor, like: Tensor) -> Tensor:
    return distribute_tensor(update, like.device_mesh, like.placements) if isinstance(like, DTensor) else update
