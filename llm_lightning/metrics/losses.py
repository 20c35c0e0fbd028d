"""The loss of a split: the exact sum over its batches, and the losses of single batches for confidence intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_lightning.metrics.rows import Rows
from llm_lightning.metrics.state import State

UNIT = 1074  # 2^-1074 is the smallest positive float64: every finite float64 is a whole number of it
AT_ONCE = 256  # losses that stay on the device and are copied together, so that no batch waits for a copy


class ExactSum:
    """A sum of floats without rounding, so that their order does not matter; `value` is rounded once, as by `math.fsum`."""

    def __init__(self) -> None:
        self.units = 0
        self.special = 0.0
        """The sum of infinities and NaN, which no whole number stands for."""

    def add(self, value: float) -> None:
        if math.isfinite(value):
            numerator, denominator = value.as_integer_ratio()
            self.units += numerator << (UNIT + 1 - denominator.bit_length())
        else:
            self.special += value

    def merge(self, others: list[ExactSum]) -> None:
        self.units, self.special = sum(other.units for other in others), sum(other.special for other in others)

    @property
    def value(self) -> float:
        if self.special:  # also NaN
            return self.special
        try:
            return self.units / (1 << UNIT)  # Python rounds the quotient of two integers correctly
        except OverflowError:
            return math.copysign(math.inf, self.units)


class BatchLosses(State):
    """Loss sums and numbers of targets of batches, by their places in the pass."""

    def __init__(self, batches: int) -> None:
        self.total, self.targets = ExactSum(), 0
        self.single = Rows(batches)
        self._pending: list[tuple[int, Tensor, int]] = []

    def update(self, place: int, loss: Tensor, targets: int) -> None:
        """Add a batch; `loss` is a scalar, on any device."""
        self._pending.append((place, loss.detach(), targets))
        if len(self._pending) >= AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        places, losses, targets = zip(*self._pending, strict=True)
        self._pending = []
        values = torch.stack(losses).cpu().double().numpy()
        for value in values.tolist():
            self.total.add(value)
        self.targets += sum(targets)
        self.single.update(np.array(places), loss=values, targets=np.array(targets))

    def payload(self) -> Any:
        self._flush()
        return self.total, self.targets, self.single.payload()

    def merge(self, payloads: list[Any]) -> None:
        totals, targets, single = zip(*payloads, strict=True)
        self.total.merge(list(totals))
        self.targets = sum(targets)
        self.single.merge(list(single))

    @property
    def mean(self) -> float:
        """Return the mean loss of a target."""
        self._flush()
        return self.total.value / max(self.targets, 1)

    def table(self) -> dict[str, Any]:
        """Return the loss sum and targets of each batch, in the order of the pass; of very many a sample, and their number as `of`."""
        self._flush()
        return self.single.table() | ({"of": self.single.seen} if self.single.describe_sample() else {})
