"""The private gradient of an optimizer step: the sum of clipped gradients of the sampled units, with noise (Abadi et al. 2016).

    (Σ_u f_u G_u + σ C ξ) / B        C: the threshold, σ: the noise multiplier, B: the expected number of units a step

`flat` clipping has f_u = min(1, C / ‖G_u‖). `automatic` has f_u = C / (‖G_u‖ + γ), for which no threshold needs to be found (Bu et al.
2022): its C cancels under Adam, and is a part of the learning rate under SGD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_lightning.data.collate import MicroBatch
from llm_lightning.privacy.noise import Noise
from llm_lightning.privacy.sequence_gradients import SequenceGradients

STABILITY = 0.01
"""γ of automatic clipping."""


class PrivateGradient:
    """Replaces the gradients of a model's trained weights by private ones, micro-batch by micro-batch."""

    def __init__(
        self, model: PreTrainedModel, threshold: float, noise_multiplier: float, expected: float, is_automatic: bool, noise: Noise
    ) -> None:
        """Set how gradients are clipped, and the noise; `expected` is the number of units a step, on average, over all ranks."""
        self._gradients = SequenceGradients(model)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._threshold, self._multiplier, self._expected = threshold, noise_multiplier, expected
        self._is_automatic, self._noise = is_automatic, noise

    def accumulate(self, batch: MicroBatch, run_forward_backward: Callable[[MicroBatch], Tensor]) -> Tensor:
        """Add the clipped gradients of a micro-batch's units to the gradients of the weights. Return what the function returns."""
        with self._gradients.record(batch):
            loss = run_forward_backward(batch)
        if not batch.blank:
            self._gradients.add_sum(self.factors(self._gradients.norms()))
        return loss

    def factors(self, norms: Tensor) -> Tensor:
        """Return (units,) the factor of each unit's gradient, given its norm."""
        if self._is_automatic:
            return self._threshold / (norms + STABILITY)
        return (self._threshold / norms.clamp(min=1e-12)).clamp(max=1.0)

    def finish(self, step: int, world_size: int, reduce: Callable[[Tensor], Any]) -> None:
        """Add noise to the sum of this rank, sum over ranks by `reduce`, and divide by the expected number of units.

        Each rank adds an independent part of the noise, whose variances add up.
        """
        deviation = self._multiplier * self._threshold / world_size**0.5
        for place, parameter in enumerate(self._trained):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if deviation:
                drawn = self._noise(parameter.numel(), step, place).view_as(parameter)
                parameter.grad.add_(drawn.to(parameter.grad), alpha=deviation)
            if world_size > 1:
                parameter.grad.copy_(reduce(parameter.grad))
            parameter.grad.div_(self._expected)
