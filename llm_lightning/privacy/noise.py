"""Gaussian noise for the gradients: from the system's cryptographic generator, or from a seed where a test needs the same again."""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 1 << 22
"""Numbers that are drawn together."""


class Noise(Protocol):
    """Draws of a normal distribution."""

    def __call__(self, count: int, step: int, place: int) -> Tensor:
        """Return (count,) fp32 normal numbers for a parameter, the one at `place`, of a step."""


def secure_noise(count: int, step: int, place: int) -> Tensor:
    """Return (count,) normal numbers that nobody can draw again, by Box and Muller (1958) from the system's generator.

    Four draws are added and halved, as one draw in floating point can tell which sums it was added to (Holohan & Braghin 2021).
    """
    return sum((_draw(count) for _ in range(3)), start=_draw(count)) / 2


def _draw(count: int) -> Tensor:
    parts = []
    for start in range(0, count, AT_ONCE):
        pairs = (min(AT_ONCE, count - start) + 1) // 2
        bits = torch.frombuffer(bytearray(os.urandom(16 * pairs)), dtype=torch.int64).view(2, pairs)
        uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)  # inside of (0, 1)
        radius, angle = (-2 * uniform[0].log()).sqrt(), 2 * math.pi * uniform[1]
        parts.append(torch.cat([radius * angle.cos(), radius * angle.sin()]).float())
    return torch.cat(parts)[:count] if len(parts) != 1 else parts[0][:count]


class SeededNoise:
    """Normal numbers as a function of seed, step and place: anyone who knows the seed can take them off again."""

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank

    def __call__(self, count: int, step: int, place: int) -> Tensor:
        generator = np.random.Generator(np.random.SFC64([self._seed, self._rank, step, place]))
        return torch.from_numpy(generator.standard_normal(count, dtype=np.float32))
